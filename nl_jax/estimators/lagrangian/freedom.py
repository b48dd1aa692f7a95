"""Finds the axons to be inferred: those that another layer reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached
from nl_jax._core.require import per_example
from nl_jax.base import Array, Axons, Batch, Objective, Params
from nl_jax.propagation import Loop, PartlyClamped, Site, clamp, interpret, loops_around, plain_loop
from nl_jax.propagation.loops import require_steps


class Freedom(NamedTuple):
    """The layers of a program with and without free axons, each in the order of propagation.

    Attributes:
      hidden: layers with free axons.
      but_last: those of them in a loop whose last step is an output: only later steps read them.
      outputs: layers without free axons, which are always f(W x + b).
    """

    hidden: tuple[str, ...]
    but_last: tuple[str, ...]
    outputs: tuple[str, ...]

    def held(self, axons: Axons) -> dict[str, Array | PartlyClamped]:
        """Returns the argument of `clamp` for hidden layers' axons."""
        return {
            name: PartlyClamped(x, jnp.arange(len(x)) < len(x) - 1) if name in self.but_last else x
            for name, x in axons.items()
        }

    def displacing(self, errors: Axons) -> dict[str, Array]:
        """Returns the argument of `displace` for hidden layers' errors: a step that is an output has none."""
        return {name: e.at[-1].set(0) if name in self.but_last else e for name, e in errors.items()}

    def credit(self, objective: Objective, params: Params, axons: Axons, batch: Batch) -> dict[str, Array]:
        """Computes λ = −∂C/∂x of outputs, where ∂L/∂x = 0 then; for layers in `but_last`, 0 except at the last step."""
        towards = downhill(objective, params, axons, batch, [*self.but_last, *self.outputs])
        own = {name: towards[name].at[:-1].set(0) for name in self.but_last}
        return {name: towards[name] for name in self.outputs} | own


def free_axons(estimator: str, objective: Objective, params: Params, batch: Batch, axons: Axons) -> Freedom:
    """Divides the layers into hidden ones, which another layer reads, and outputs; runs nothing.

    Args:
      estimator: its name, for messages.
      objective, params, batch: the program.
      axons: of all layers, in the order of propagation; only shapes are used.

    Raises:
      ValueError: if a layer in a loop within a loop is read only by later steps.
    """
    read, finally_read = (_read(objective, params, batch, axons, loop) for loop in (plain_loop, _last_step))
    but_last = tuple(name for name in axons if name in read - finally_read)
    for name in but_last:
        if loops_around(name) > 1:
            raise ValueError(
                f"{estimator}: layer {name!r}, in a loop within a loop, is read by its later steps alone, and which of "
                "them are outputs is not known: let an output layer read it, or use lagrangian_backprop"
            )
    return Freedom(tuple(n for n in axons if n in read), but_last, tuple(n for n in axons if n not in read))


def downhill(objective: Objective, params: Params, axons: Axons, batch: Batch, names: list[str]) -> dict[str, Array]:
    """Computes −∂C/∂x_l of the named layers, with all other axons held."""

    def total(some: Axons) -> Array:
        return -jnp.sum(per_example(clamp(objective)(params, batch, {**axons, **some})[0]))

    return jax.grad(total)({name: axons[name] for name in names})


def _read(objective: Objective, params: Params, batch: Batch, axons: Axons, loop: Loop) -> set[str]:
    """Returns the layers that another layer, or a later step of their own, computes its axons from."""

    def layer(site: Site, x: Array) -> tuple[Array, Array]:
        return x, site.axons()

    def made(batch: Batch, *values: Array) -> dict[str, Array]:
        return interpret(objective, layer, loop=loop)(params, batch, dict(zip(axons, values, strict=True)))[1]

    sources = reached(made, batch, *axons.values()).values()  # argument 1 + i is the i-th layer
    return {name for i, name in enumerate(axons) if any(1 + i in found for found in sources)}


def _last_step(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
    """Runs the last step of a loop alone, in which no layer is read by later steps."""
    require_steps(name, xs, length)
    carry, y = body(carry, jax.tree.map(lambda x: x[-1], xs))
    steps = jax.tree.leaves(xs)[0].shape[0] if jax.tree.leaves(xs) else length
    return carry, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, *jnp.shape(leaf))), y)
