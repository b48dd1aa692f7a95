"""Inner iterations that stop when they converge; those that diverge return NaN and a failure."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Failure
from nl_jax.checks import nonnegative_number, positive_count
from nl_jax.failures import raise_if_known

Carry = TypeVar("Carry")

GROWTH = 1e3
"""How many times its first value a residual may grow to before the iteration counts as diverging."""


class Relaxation(NamedTuple):
    """How long to iterate.

    Attributes:
      num_steps: K, the most iterations taken; an array, which may be traced, is not checked.
      tolerance: stops once the residual is at most this fraction of the first iteration's; 0 to take all K.
    """

    num_steps: int | Array
    tolerance: float = 0.0

    def checked(self) -> "Relaxation":
        """The same, or ValueError for a number of steps below 1 or a tolerance that is not in [0, 1)."""
        positive_count("num_steps", self.num_steps)
        if nonnegative_number("tolerance", self.tolerance) >= 1:
            raise ValueError(f"tolerance must be below 1, a fraction of the first residual, got {self.tolerance!r}")
        return self


class Relaxed(NamedTuple, Generic[Carry]):
    """Where inner iterations ended.

    Attributes:
      carry: the last one, its floating-point leaves NaN if the iterations diverged.
      taken: how many steps were taken, int32.
      failures: whether they diverged; () for iterations that always converge.
    """

    carry: Carry
    taken: Array
    failures: tuple[Failure, ...]


def relax(
    step: Callable[[Carry], tuple[Carry, Array]], start: Carry, relaxation: Relaxation, remedy: str | None
) -> Relaxed[Carry]:
    """Repeats `step` on the whole batch, up to K times or until its residual has become small.

    Iterations diverge if the residual grows a thousandfold or is no longer finite. If the first one is not finite the
    trouble lies before the iterations, and they have not failed. What the very last step does would take one residual
    more to see: `num_steps` of 1 never fails, and a `KKT` alone tells.

    Args:
      step: `step(carry) -> (carry, residual)`, the residual a scalar: how far the carry it was given is from
        being stationary.
      start: the first carry, any tree of arrays.
      relaxation: how long.
      remedy: what to change if it diverges, with the setting's name and value: "step_size=0.5: choose a smaller one";
        None for iterations that always converge, however far they go on the way.

    Returns:
      A `Relaxed`.

    Raises:
      FloatingPointError: if they diverge, outside of `jax.jit` and other transformations.
    """
    first = jax.eval_shape(step, start)[1]

    def unfinished(loop: tuple[Carry, Array, Array, Array]) -> Array:
        _, taken, begun, residual = loop
        return (taken < relaxation.num_steps) & ((taken == 0) | ~(residual <= relaxation.tolerance * begun))

    def again(loop: tuple[Carry, Array, Array, Array]) -> tuple[Carry, Array, Array, Array]:
        carry, taken, begun, _ = loop
        carry, residual = step(carry)
        return carry, taken + 1, jnp.where(taken == 0, residual, begun), residual

    unknown = jnp.zeros_like(first)  # varies over devices as it does
    carry, taken, begun, residual = jax.lax.while_loop(unfinished, again, (start, jnp.int32(0), unknown, unknown))
    if remedy is None:
        return Relaxed(carry, taken, ())
    diverged = jnp.isfinite(begun) & ~(residual <= GROWTH * begun)
    failures = (Failure(diverged, f"the inner iterations diverged at {remedy}"),)
    raise_if_known(failures)
    return Relaxed(_nan_where(diverged, carry), taken, failures)


def distance(*gradients: Any) -> Array:
    """The root mean square over examples of ‖gradient‖, for trees of arrays with the batch axis first; 0 for none."""
    leaves = jax.tree.leaves(gradients)
    if not leaves:
        return jnp.zeros(())
    # In the default precision: squares of half-precision numbers overflow, and layers may differ in theirs.
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(float))) for leaf in leaves) / leaves[0].shape[0])


def _nan_where(condition: Array, carry: Carry) -> Carry:
    """NaN in place of what has gone wrong, so that nobody takes it for a result."""

    def leaf(x: Array) -> Array:
        return jnp.where(condition, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(leaf, carry)
