"""Wraps one `propagate` around another."""

from collections.abc import Callable, Mapping
from typing import Any

from nl_jax.base import ActivationFn, Array, Connection, Params, Propagate
from nl_jax.propagation.interpretation import SEPARATOR, Site, require_new
from nl_jax.propagation.program import scan


class Around:
    """A `propagate` that wraps each layer, in loops as well, and delegates to another `propagate`.

    Args:
      propagate: the other `propagate`.
      around: `around(site, given, propagate) -> axons`; calls `propagate` with the name, connection, activation,
        parameters and inputs to pass on. `site.steps` is empty, because the other `propagate` counts steps.
      given: values by layer, as for `interpret`.
    """

    def __init__(
        self,
        propagate: Propagate,
        around: Callable[[Site, Any, Propagate], Array],
        given: Mapping[str, Any] | None = None,
        scope: str = "",
    ) -> None:
        self.propagate, self.around, self.given, self.scope = propagate, around, given or {}, scope
        self.met: set[str] = set()

    def __call__(
        self, name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
    ) -> Array:
        def hand_on(
            _: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            return self.propagate(name, connection, activation, params, *inputs)

        own = self.scope + name
        require_new(own, self.met)
        self.met.add(own)
        return self.around(Site(own, connection, activation, params, inputs), self.given.get(own), hand_on)

    def scan(self, name: str, step: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        scope = f"{self.scope}{name}{SEPARATOR}"
        stacked = {key: value for key, value in self.given.items() if key.startswith(scope)}

        def inside(carry: Any, slices: tuple[Any, Any], propagate: Propagate) -> tuple[Any, Any]:
            x, given = slices
            return step(carry, x, Around(propagate, self.around, given, scope))

        return scan(name, inside, carry, (xs, stacked), self.propagate, length=length)
