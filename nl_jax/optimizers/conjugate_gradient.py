"""Nonlinear conjugate gradients with a line search."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.numerics import all_finite, dot, widened
from nl_jax._core.require import positive_hyperparameter, positive_integer, takes
from nl_jax.base import Array, Params, State
from nl_jax.optimizers.betas import Beta, polak_ribiere
from nl_jax.optimizers.inner import ratio


class ConjugateGradientState(NamedTuple):
    """The state from which the next direction is computed.

    Attributes:
      step: number of steps taken.
      gradient: g of the last step.
      direction: p of the last step.
      restarted: whether the last step was steepest descent.
    """

    step: Array
    gradient: Params
    direction: Params
    restarted: Array


def scale_by_conjugate_gradient(
    beta: Beta = polak_ribiere, *, nonneg: bool = True, restart: float | None = 0.3, restart_every: int | None = None
) -> optax.GradientTransformation:
    """Turns gradients into conjugate directions (seed 003 §3.2, nonlinear systems).

        p_{n+1} = r_{n+1} + β_n p_n,   r = −g

    As with every optax scaling transformation, the updates are to be subtracted: they are −p. Follow it by a line
    search (as in `conjugate_gradient`) or a small learning rate.

    p falls back to steepest descent, p = r, at the first step, where p would not descend (gᵀp ≥ 0), where β is not
    finite, and where successive gradients are far from orthogonal, |gᵀg_prev| ≥ ν gᵀg (Powell 1977). Without the last
    rule Fletcher–Reeves and Dai–Yuan stall. It also covers a line search that found no step, g = g_prev.

    Args:
      beta: `beta(gradient, previous, direction) -> β`: `nl.optimizers.fletcher_reeves`, `.polak_ribiere`,
        `.hestenes_stiefel`, `.dai_yuan` or your own.
      nonneg: whether a negative β is replaced by 0 (PR+ and HS+, Gilbert and Nocedal 1992).
      restart: ν, above 0; None for no such restarts.
      restart_every: steps from one restart to the next, at least 1, such as the number of parameters; None for none.

    Raises:
      ValueError: if a setting is not as described.

    >>> import jax.numpy as jnp, optax
    >>> optimizer = optax.chain(scale_by_conjugate_gradient(), optax.scale_by_learning_rate(0.1))
    >>> w = jnp.array([1.0, 2.0])
    >>> updates, state = optimizer.update(w, optimizer.init(w))  # at first the gradient's own direction
    >>> updates
    Array([-0.1, -0.2], dtype=float32)
    """
    takes("beta", beta, 3, "a formula (gradient, previous, direction) -> β, such as nl.optimizers.polak_ribiere")
    nu = None if restart is None else positive_hyperparameter("restart", restart)
    period = None if restart_every is None else positive_integer("restart_every", restart_every)

    def init(params: Params) -> ConjugateGradientState:
        zeros = optax.tree.zeros_like(params)
        return ConjugateGradientState(jnp.int32(0), zeros, zeros, jnp.bool_(True))

    def update(
        updates: Params, state: ConjugateGradientState, params: Params | None = None
    ) -> tuple[Params, ConjugateGradientState]:
        del params
        g = updates
        kept = jnp.asarray(beta(g, state.gradient, state.direction))
        kept = jnp.maximum(kept, 0) if nonneg else kept
        bent = jax.tree.map(lambda g, p: kept.astype(p.dtype) * p - g, widened(g), widened(state.direction))
        afresh = (state.step == 0) | ~(dot(g, bent) < 0) | ~jnp.isfinite(kept)
        if nu is not None:
            afresh |= jnp.abs(dot(g, state.gradient)) >= nu * dot(g, g)
        if period is not None:
            afresh |= state.step % period == 0
        bent = jax.tree.map(lambda g, p: p.astype(g.dtype), g, bent)  # in half precision this may overflow
        afresh |= ~all_finite(bent)
        direction = jax.tree.map(lambda g, p: jnp.where(afresh, -g, p), g, bent)
        state = ConjugateGradientState(optax.safe_increment(state.step), g, direction, afresh)
        return optax.tree.scale(-1, direction), state

    return optax.GradientTransformation(init, update)


class LineSearchState(NamedTuple):
    """The state from which the next line search starts.

    Attributes:
      conjugate: state of the directions.
      search: state of optax's line search, with α and the value and gradient at its end.
      slope: gᵀp, where the last search began.
      length: ‖α p‖ of the last step, or a tenth of the previous `length` if that is larger.
    """

    conjugate: ConjugateGradientState
    search: State
    slope: Array
    length: Array


def conjugate_gradient(
    beta: Beta = polak_ribiere,
    *,
    nonneg: bool = True,
    restart: float | None = 0.3,
    restart_every: int | None = None,
    curv_rtol: float = 0.05,
    max_linesearch_steps: int = 30,
) -> optax.GradientTransformationExtraArgs:
    """Nonlinear conjugate gradients with optax's zoom line search (seed 003 §3.2, eq. 36).

        α = argmin_α f(x + α p) to the strong Wolfe conditions,  x ← x + α p,  p ← r + β p

    The search is tight, |p·∇f(x + α p)| ≤ 0.05 |p·∇f(x)|: conjugacy depends on it, and optax's default of 0.9 is far
    too loose. It begins at α = α_prev g_prevᵀp_prev / gᵀp, as if f fell as much as before (Nocedal and Wright 2006,
    eq. 3.60). After a restart it begins with a step as long as the last; the first search begins with length 1.

    `nl.learner` passes the arguments that the search needs. Deterministic functions are best minimised with optax's own
    loop, as in the example below, which evaluates nothing twice.

    One search must see one function: a stochastic estimator needs the same key and batch throughout the search, which
    `nl.learner` ensures. The Wolfe conditions then hold for that batch's loss, with the estimator's slope. Between
    steps the function changes, and conjugacy is not guaranteed. With noisy estimates β is mostly noise; momentum works
    better.

    If a search finds no descending step, no step is taken. No search begins with less than a tenth of the length that
    the previous search began from or found.

    It searches in all parameters at once. For a part of them use `nl.alternating`, not `optax.multi_transform`. Under
    `optax.inject_hyperparams` pass `static_args=("beta", "nonneg", "restart_every", "max_linesearch_steps")`.

    Under `jax.vmap` every lane takes the steps it would take alone, and waits for the slowest: a search costs as many
    evaluations as the longest lane.

    Args:
      beta, nonneg, restart, restart_every: as for `scale_by_conjugate_gradient`.
      curv_rtol: c₂ of the curvature condition, between 0 and 1.
      max_linesearch_steps: maximum number of evaluations in one search, at least 1.

    Returns:
      An optax optimizer whose `update` takes `value`, `grad` and `value_fn`.

    Raises:
      ValueError: if a setting is not as described.

    >>> import jax, jax.numpy as jnp, optax
    >>> f = lambda x: 50 * x[0] ** 2 + 0.5 * x[1] ** 2
    >>> optimizer, value_and_grad = conjugate_gradient(), optax.value_and_grad_from_state(f)
    >>> @jax.jit
    ... def step(x, state):
    ...     value, grad = value_and_grad(x, state=state)
    ...     updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=f)
    ...     return optax.apply_updates(x, updates), state
    >>> x = jnp.array([1.0, 1.0])
    >>> state = optimizer.init(x)
    >>> for _ in range(6):
    ...     x, state = step(x, state)
    >>> bool(f(x) < 1e-6)
    True
    """
    if isinstance(positive_hyperparameter("curv_rtol", curv_rtol), float) and not curv_rtol < 1:
        raise ValueError(f"curv_rtol must be below 1, got {curv_rtol}: 0.1 or less keeps directions conjugate")
    steps = positive_integer("max_linesearch_steps", max_linesearch_steps)
    directions = scale_by_conjugate_gradient(beta, nonneg=nonneg, restart=restart, restart_every=restart_every)
    # The search's smallest interval is absolute; for short steps optax's default of 1e-5 would end it too early.
    zoom = optax.scale_by_zoom_linesearch(steps, curv_rtol=curv_rtol, stepsize_precision=1e-8)

    def init(params: Params) -> LineSearchState:
        one = jnp.ones_like(dot(params, params))
        return LineSearchState(directions.init(params), zoom.init(params), -one, one)

    def update(
        updates: Params, state: LineSearchState, params: Params | None = None, **extra: State
    ) -> tuple[Params, LineSearchState]:
        if params is None or "value_fn" not in extra:
            raise ValueError(
                "conjugate_gradient searches along a line: update needs params, value, grad and value_fn (nl.learner "
                "gives them, but a wrapper such as optax.MultiSteps may not hand them on); without a search take "
                "scale_by_conjugate_gradient and a learning rate"
            )
        here: Any = jax.tree.structure(params)
        if here != jax.tree.structure(extra["grad"]):
            raise ValueError(
                "conjugate_gradient searches along a line in all parameters that its value_fn has; for a part of them, "
                "instead of optax.multi_transform or optax.masked, take nl.alternating with a stage for each part"
            )
        descent, conjugate = directions.update(updates, state.conjugate)
        p = optax.tree.scale(-1, descent)
        slope = dot(updates, p)
        alike = ratio(state.search.learning_rate.astype(slope.dtype) * state.slope, slope)
        as_long = ratio(state.length, dot(p, p) ** 0.5)
        # Never far below the last: one bad search, with a noisy gradient, must not make all later steps tiny.
        guess = jnp.where(conjugate.restarted, as_long, jnp.maximum(alike, 0.1 * as_long))
        guess = jnp.where((guess > 0) & jnp.isfinite(guess), guess, 1)
        search = state.search._replace(learning_rate=guess.astype(state.search.learning_rate.dtype))
        step, found = zoom.update(p, search, params, **extra)
        # When its search fails, optax takes a step that does not descend; near rounding error this can be any step.
        stay = (found.info.decrease_error > 0) & ~(found.value < extra["value"])
        value = jnp.asarray(extra["value"], found.value.dtype)
        kept = found._replace(value=value, grad=jax.tree.map(lambda new, g: g.astype(new.dtype), found.grad, updates))
        found = optax.tree.where(stay, kept, found)
        step = jax.tree.map(lambda x: jnp.where(stay, jnp.zeros_like(x), x), step)
        length = jnp.maximum(0.1 * state.length, dot(step, step) ** 0.5)
        return step, LineSearchState(conjugate, found, slope, length)

    return optax.GradientTransformationExtraArgs(init, update)
