"""Inner iterations that stop when they converge; those that diverge return NaN and a failure."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from nl_jax._core.failures import raise_if_known
from nl_jax._core.require import nonnegative_number, positive_count
from nl_jax.base import Array, Failure

Carry = TypeVar("Carry")

GROWTH = 1e3
"""An iteration counts as diverged once its residual exceeds its first value by this factor."""


class Relaxation(NamedTuple):
    """The length of inner iterations.

    Attributes:
      num_steps: K, the maximum number of iterations; an array, which may be traced, is not checked.
      tolerance: iterations stop once the residual is at most this fraction of the first one; 0 to take all K.
    """

    num_steps: int | Array
    tolerance: float = 0.0

    def checked(self) -> "Relaxation":
        """Returns itself; ValueError if the number of steps is below 1 or the tolerance is not in [0, 1)."""
        positive_count("num_steps", self.num_steps)
        if nonnegative_number("tolerance", self.tolerance) >= 1:
            raise ValueError(f"tolerance must be below 1, a fraction of the first residual, got {self.tolerance!r}")
        return self


class Relaxed(NamedTuple, Generic[Carry]):
    """The result of inner iterations.

    Attributes:
      carry: the last one; its floating-point leaves are NaN if the iterations diverged.
      taken: the number of steps taken, int32.
      failures: whether they diverged; () for iterations that always converge.
    """

    carry: Carry
    taken: Array
    failures: tuple[Failure, ...]


def relax(
    step: Callable[[Carry], tuple[Carry, Array]], start: Carry, relaxation: Relaxation, remedy: str | None
) -> Relaxed[Carry]:
    """Repeats `step` on the whole batch, up to K times or until its residual is small.

    Iterations count as diverged if the residual grows a thousandfold or becomes non-finite. If the first residual is
    not finite, the cause lies before the iterations, and they have not failed. The effect of the last step is not
    checked, for that would take one more residual: with `num_steps` of 1 nothing ever fails, and only a `KKT` shows
    divergence.

    Args:
      step: `step(carry) -> (carry, residual)`, the residual a scalar that measures how far the given carry is from
        being stationary.
      start: the first carry, any tree of arrays.
      relaxation: the length of the iterations.
      remedy: what to change if it diverges, with the setting's name and value: "step_size=0.5: choose a smaller one";
        None for iterations that always converge, however large they become on the way.

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

    unknown = jnp.zeros_like(first)  # varies over devices as the residual does
    carry, taken, begun, residual = jax.lax.while_loop(unfinished, again, (start, jnp.int32(0), unknown, unknown))
    if remedy is None:
        return Relaxed(carry, taken, ())
    diverged = jnp.isfinite(begun) & ~(residual <= GROWTH * begun)
    failures = (Failure(diverged, f"the inner iterations diverged at {remedy}"),)
    raise_if_known(failures)
    return Relaxed(_nan_where(diverged, carry), taken, failures)


def distance(*gradients: Any) -> Array:
    """Computes the RMS over examples of ‖gradient‖, for trees of arrays with the batch axis first; 0 for none."""
    leaves = jax.tree.leaves(gradients)
    if not leaves:
        return jnp.zeros(())
    # In the default precision: squares of half-precision numbers overflow, and layers may differ in precision.
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(float))) for leaf in leaves) / leaves[0].shape[0])


def _nan_where(condition: Array, carry: Carry) -> Carry:
    """Replaces diverged values by NaN, so that they are not mistaken for a result."""

    def leaf(x: Array) -> Array:
        return jnp.where(condition, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(leaf, carry)
