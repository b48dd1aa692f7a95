"""Conjugate gradients without a line search, with one gradient per step."""

from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.numerics import dot, widened
from nl_jax._core.require import positive_integer
from nl_jax.base import Array, Params
from nl_jax.optimizers.inner import ratio


class OneEvaluationState(NamedTuple):
    """The values that the seed stores, p_{n−1} and z_{n−1} = p_{n−1}ᵀr_{n−1}, and the number of steps."""

    step: Array
    direction: Params
    projection: Array


def scale_by_one_evaluation(
    *, clip: tuple[float, float] | None = (0.0, 1.0), renew_every: int = 1
) -> optax.GradientTransformation:
    """The seed's own conjugate gradient (seed 003 §3.2, "The numerical implementation"), r = −g:

        1. p_n = r_n + β p_{n−1},  β = r_nᵀr_n / (z_{n−1} − r_nᵀp_{n−1}),  or p_n = p_{n−1};  p_0 = r_0
        2. x_{n+1} = x_n + α sgn(p_nᵀr_n) p_n

    β is Dai and Yuan's, with z_{n−1} for p_{n−1}ᵀr_{n−1}, so no older gradient is kept. The formula assumes a line
    search, but there is none. Taken literally (`clip=None`), β is unbounded where two gradients have the same
    projection on p, and the iteration diverges: on Rosenbrock's function in four dimensions at every α tried. With β in
    [0, 1] it is heavy-ball momentum with an automatic coefficient, and ends far below gradient descent.

    Args:
      clip: smallest and largest β; None for the literal formula.
      renew_every: steps from one new direction to the next; between them p_n = p_{n−1}, the seed's other choice.

    Returns:
      A transformation whose updates, −sgn(p_nᵀr_n) p_n, are to be subtracted.

    Raises:
      ValueError: if a setting is not as described.
    """
    if clip is not None and not _is_interval(clip):
        raise ValueError(f"clip must be (least, largest) or None for the literal formula, got {clip!r}")
    period = positive_integer("renew_every", renew_every)

    def init(params: Params) -> OneEvaluationState:
        direction = optax.tree.zeros_like(params)
        return OneEvaluationState(jnp.int32(0), direction, jnp.zeros_like(dot(direction, direction)))

    def update(
        updates: Params, state: OneEvaluationState, params: Params | None = None
    ) -> tuple[Params, OneEvaluationState]:
        del params
        r, p = optax.tree.scale(-1, updates), state.direction
        beta = ratio(dot(r, r), state.projection - dot(r, p))
        if clip is not None:
            beta = jnp.clip(beta, *clip)
        first, renewed = state.step == 0, state.step % period == 0

        def next_direction(r: Array, p: Array) -> Array:
            (wide,) = widened([r])
            conjugate = jnp.where(first, wide, wide + beta * p.astype(wide.dtype)).astype(r.dtype)
            return jnp.where(renewed, conjugate, p)

        p = jax.tree.map(next_direction, r, p)
        z = dot(p, r)
        return optax.tree.scale(-jnp.sign(z), p), OneEvaluationState(optax.safe_increment(state.step), p, z)

    return optax.GradientTransformation(init, update)


def _is_interval(clip: Any) -> bool:
    pair = isinstance(clip, tuple | list) and len(clip) == 2 and all(isinstance(end, Real) for end in clip)
    return pair and clip[0] <= clip[1]


def one_evaluation_conjugate_gradient(
    learning_rate: optax.ScalarOrSchedule, *, clip: tuple[float, float] | None = (0.0, 1.0), renew_every: int = 1
) -> optax.GradientTransformation:
    """Steps x ← x + α sgn(pᵀr) p with the seed's p (seed 003 §3.2); see `scale_by_one_evaluation`.

    Under `optax.inject_hyperparams` pass `static_args=("clip", "renew_every")`.

    Args:
      learning_rate: α, or a schedule of it.
      clip: smallest and largest β; None for the literal formula, which diverges.
      renew_every: steps from one new direction to the next.

    Raises:
      ValueError: if a setting is not as described.

    >>> import jax.numpy as jnp, optax
    >>> optimizer, x = one_evaluation_conjugate_gradient(1e-2), jnp.array([1.0, 1.0])
    >>> state = optimizer.init(x)
    >>> for _ in range(200):
    ...     updates, state = optimizer.update(jnp.array([10.0, 1.0]) * x, state)
    ...     x = optax.apply_updates(x, updates)
    >>> bool(jnp.max(jnp.abs(x)) < 1e-3)
    True
    """
    return optax.chain(
        scale_by_one_evaluation(clip=clip, renew_every=renew_every), optax.scale_by_learning_rate(learning_rate)
    )
