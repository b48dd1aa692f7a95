"""The two primitives of programs: `propagate` applies a layer, `scan` repeats layers."""

from collections.abc import Callable
from typing import Any

import jax

from nl_jax._core.products import as_slices
from nl_jax.base import ActivationFn, Array, Connection, Params, Propagate


def feedforward(
    name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
) -> Array:
    """Computes x^l = f(W^l x^{l-1} + b^l); the default `propagate` (seed 000, backprop; seed 003 eq. 6).

    Args:
      name: the layer's name, unique within one run of the program.
      connection: `connection(params, *inputs) -> pre-activation`.
      activation: `activation(pre-activation) -> axons`.
      params: this layer's parameters.
      *inputs: axons (activity) of lower layers, batch axis first.

    Returns:
      The layer's axons.

    Raises:
      ValueError: if the connection or the activation is no function.

    >>> import jax.numpy as jnp
    >>> affine = lambda params, x: x @ params["weight"]
    >>> feedforward("output", affine, jnp.tanh, {"weight": jnp.zeros([3, 2])}, jnp.ones([1, 3]))
    Array([[0., 0.]], dtype=float32)
    """
    require_functions(name, connection, activation)
    return activation(connection(params, *inputs))


def require_functions(name: str, connection: Any, activation: Any) -> None:
    """Raises ValueError unless a layer's connection and activation are functions."""
    if not callable(connection):
        raise ValueError(f"layer {name!r}: its connection must be a function of (params, *inputs), got {connection!r}")
    if not callable(activation):
        raise ValueError(
            f"layer {name!r}: its activation must be a function of the pre-activation, got {activation!r}: for none "
            "use nl.activations.identity()"
        )


def scan(
    name: str,
    step: Callable[[Any, Any, Propagate], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    propagate: Propagate,
    *,
    length: int | None = None,
) -> tuple[Any, Any]:
    """`jax.lax.scan` for programs: learning rules can reach the layers inside the loop.

    In a loop over time, the parameters come from outside and all steps share them. In a loop over depth, they are
    stacked in `xs`, one block per step. A layer "hidden" in a loop "time" is called "time/hidden", and its given and
    found values have a leading axis of steps. Loops may be nested.

    A `propagate` written by hand as a plain function is called directly inside the loop, with the layer's own name
    ("hidden"). JAX traces it once for all steps. It may compute anything, but must not store the values it receives.

    Args:
      name: the loop's name, unique among the layers and loops beside it.
      step: `step(carry, x, propagate) -> (carry, y)`; it must call the `propagate` that it receives.
      carry: the first carry, any tree of arrays.
      xs: a tree of arrays with a leading axis of steps, or None.
      propagate: the program's `propagate`.
      length: number of steps, required if `xs` is None.

    Returns:
      `(carry, ys)`: the last carry, and the y of all steps stacked.

    Raises:
      ValueError: for a name that is taken or contains a "/", or a `propagate` that is not callable.
      TypeError: from `jax.lax.scan`, if `step` changes the carry's shapes or dtypes.

    >>> import jax.numpy as jnp
    >>> def step(x, weight, propagate):
    ...     return propagate("block", lambda w, x: x @ w, jnp.tanh, weight, x), None
    >>> def deep(weights, x, propagate=feedforward):  # weights [depth, units, units]
    ...     return scan("depth", step, x, weights, propagate)[0]
    >>> deep(jnp.zeros([64, 3, 3]), jnp.ones([2, 3])).shape
    (2, 3)
    """
    if not callable(propagate):
        raise ValueError(f"propagate must be what the program was called with, got {propagate!r}")
    inside = getattr(propagate, "scan", None)
    xs, rebuilt = as_slices(xs)  # lazy weights for stacked weights, perhaps with noise drawn in the loop

    def body(carry: Any, slices: Any, propagate: Propagate) -> tuple[Any, Any]:
        return step(carry, rebuilt(slices), propagate)

    if inside is None:
        return jax.lax.scan(lambda carry, slices: body(carry, slices, propagate), carry, xs, length)
    return inside(name, body, carry, xs, length)
