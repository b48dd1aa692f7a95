"""Fits the coefficients of a polynomial plasticity rule to observed weights or activity.

The rule is w ← w + Σ_abc θ_abc x^a y^b w^c (`nl.rules.parametric`). Each function estimates the coefficients θ and
their standard errors. θ includes the learning rate. Arrays of any dtypes are computed in one, float32 at least.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.numerics import in_one_dtype
from nl_jax._core.require import nonnegative_number, positive_integer
from nl_jax.base import Array
from nl_jax.evaluation.diagnostics.least_squares import Solution, descend, judged, linear
from nl_jax.rules.parametric import SHAPE, monomials

Powers = tuple[int, int, int]
ALL_TERMS: tuple[Powers, ...] = tuple((a, b, c) for a in range(3) for b in range(3) for c in range(3))


class Plasticity(NamedTuple):
    """A rule's coefficients estimated from observations.

    Attributes:
      theta: θ [3, 3, 3], where θ[a, b, c] is the coefficient of x^a y^b w^c; 0 for excluded terms.
      standard_errors: the standard errors of θ [3, 3, 3], from the scatter of the observations about the fit. They are
        0 for excluded terms, infinite where the observations do not determine a coefficient, and NaN with an L1
        penalty, which pulls θ to 0.
      covariance: the covariance of the fitted coefficients in the order of `terms`, [terms, terms].
      noise: the standard deviation of one observation about the fit, a scalar.
      initial: the weights at the first step of the fit, [inputs, units].
    """

    theta: Array
    standard_errors: Array
    covariance: Array
    noise: Array
    initial: Array


def plasticity_from_weights(
    weights: Array, pre: Array, post: Array, *, terms: Collection[Powers] = ALL_TERMS
) -> Plasticity:
    """Fits a rule's coefficients to weight changes by linear least squares.

    It is for weights that are measured exactly and change noisily: w_{t+1} = w_t + Σ θ_abc x^a y^b w^c + noise, with
    noise independent across synapses and steps. With noisy measurements both θ and its errors would be wrong: use
    `plasticity_from_readings`. This is a pure function.

    Args:
      weights: w before each step and after the last, [steps + 1, inputs, units].
      pre: x, the layer's inputs, [steps, examples, inputs]; a change is the mean over a step's examples.
      post: y, the layer's responses, [steps, examples, units].
      terms: the powers (a, b, c) of the coefficients to fit; all others are fixed at 0.

    Returns:
      A `Plasticity`.

    Raises:
      ValueError: if shapes do not fit together, a term does not exist, or there are not more observations than terms.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> x = jax.random.normal(jax.random.key(0), (20, 5, 3))
    >>> rule, w = nl.rules.oja(), [0.5 * jnp.ones((3, 1))]
    >>> for one in x:
    ...     w.append(w[-1] + 0.1 * rule.change((), {"weight": w[-1]}, one, one @ w[-1], None)[0]["weight"])
    >>> y = x @ jnp.stack(w[:-1])
    >>> found = nl.diagnostics.plasticity_from_weights(jnp.stack(w), x, y, terms=[(1, 1, 0), (0, 2, 1), (1, 0, 0)])
    >>> [round(float(found.theta[powers]), 3) for powers in ((1, 1, 0), (0, 2, 1))]
    [0.1, -0.1]
    """
    sought = _checked_terms(terms)
    weights, pre, post = _together(weights, pre, post)
    _require_steps("pre", pre, weights, 1)
    _require_steps("post", post, weights, 2)
    columns = jax.vmap(monomials)(weights[:-1], pre, post)[(slice(None), *np.transpose(sought))]
    design = jnp.moveaxis(columns, 1, -1).reshape(-1, len(sought))
    observed = (weights[1:] - weights[:-1]).reshape(-1)
    _require_observations(observed.size, len(sought))
    return _plasticity(linear(design, observed), sought, weights[0])


def plasticity_from_readings(
    readings: Array,
    pre: Array,
    *,
    initial: Array,
    activation: Callable[[Array], Array] = lambda nu: nu,
    fit_initial: bool = True,
    terms: Collection[Powers] = ALL_TERMS,
    l1: float = 0.0,
    num_steps: int = 30,
) -> Plasticity:
    """Fits a rule's coefficients to noisy weight readings, through the unrolled training.

    It is for weights that follow the rule exactly and are read with noise that is independent across readings.

    Args:
      readings: readings of w before each step and after the last, [steps + 1, inputs, units]; NaN where none was taken.
      pre, initial, activation, fit_initial, terms, l1, num_steps: as in `plasticity_from_activity`.

    Returns:
      A `Plasticity`.

    Raises:
      ValueError: as in `plasticity_from_activity`.
    """
    readings, pre, initial = _together(readings, pre, initial)
    _require_steps("pre", pre, readings, 1)
    if np.shape(initial) != np.shape(readings)[1:]:
        raise ValueError(
            f"initial must be of the shape of one reading, {np.shape(readings)[1:]}, got {np.shape(initial)}"
        )
    return _unrolled(lambda w, y: w, readings, pre, initial, activation, fit_initial, terms, l1, num_steps)


def plasticity_from_activity(
    activity: Array,
    pre: Array,
    *,
    initial: Array,
    activation: Callable[[Array], Array] = lambda nu: nu,
    fit_initial: bool = False,
    terms: Collection[Powers] = ALL_TERMS,
    l1: float = 0.0,
    num_steps: int = 30,
) -> Plasticity:
    """Fits a rule's coefficients to a layer's responses while it learns; weights are unobserved (Mehta et al. 2024).

    The model is a layer y = f(x W) that learns by `nl.rules.parametric(θ)` from W₀, and whose responses are observed
    with Gaussian noise. θ maximises the likelihood of all observed responses. It is found by Gauss–Newton descent
    through the unrolled training, starting at θ = 0. This is a pure function: jit it to run fast. In float32 all 27
    terms can seldom be separated at once; use `jax.enable_x64`, or fewer terms.

    Args:
      activity: y of the layer before each step's change, [steps, examples, units]; NaN where it was not observed.
      pre: x, the layer's inputs, [steps, examples, inputs]; a change is the mean over a step's examples.
      initial: W₀, the weights at the first step, [inputs, units].
      activation: f, a function of arrays.
      fit_initial: whether W₀ is also unknown; `initial` is then only the start of its search, and standard errors of θ
        include the uncertainty of W₀.
      terms: the powers (a, b, c) of the coefficients to fit; all others are fixed at 0.
      l1: at least 0. Above 0, l1 Σ|θ_abc| is added to the loss, half the mean squared residual. Few coefficients then
        remain, all of them too small. Fit again with only these `terms` to remove that bias and obtain standard errors;
        these errors do not include the uncertainty of selecting the terms.
      num_steps: descent steps tried on each of the first eighth, quarter, half and all of the observations.

    Returns:
      A `Plasticity`. Its standard errors hold for many observations, where the likelihood is Gaussian in θ.

    Raises:
      ValueError: if shapes do not fit together, a term does not exist, there are not more observations than unknowns
        (under `jax.jit` NaN count as observations, and the noise and standard errors of too few are NaN), l1 is below 0
        or num_steps is not a whole number of at least 1.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> x = jax.random.normal(jax.random.key(0), (20, 5, 3))
    >>> rule, w, y = nl.rules.oja(), 0.5 * jnp.ones((3, 1)), []
    >>> for one in x:
    ...     y.append(one @ w)
    ...     w = w + 0.1 * rule.change((), {"weight": w}, one, y[-1], None)[0]["weight"]
    >>> y = jnp.stack(y) + 0.01 * jax.random.normal(jax.random.key(1), (20, 5, 1))
    >>> candidates = [(1, 1, 0), (0, 2, 1), (1, 0, 0)]
    >>> found = nl.diagnostics.plasticity_from_activity(y, x, initial=0.5 * jnp.ones((3, 1)), terms=candidates)
    >>> [round(float(found.theta[powers]), 2) for powers in candidates[:2]]
    [0.1, -0.1]
    """
    activity, pre, initial = _together(activity, pre, initial)
    if np.ndim(activity) != 3 or np.ndim(pre) != 3 or np.shape(activity)[:2] != np.shape(pre)[:2]:
        raise ValueError(
            "activity must be of shape [steps, examples, units] and pre of shape [steps, examples, inputs], "
            f"got {np.shape(activity)} and {np.shape(pre)}: a single example a step is an axis of 1"
        )
    if np.shape(initial) != (np.shape(pre)[2], np.shape(activity)[2]):
        raise ValueError(
            f"initial must be of shape [inputs, units], {(np.shape(pre)[2], np.shape(activity)[2])}, "
            f"got {np.shape(initial)}"
        )
    return _unrolled(lambda w, y: y, activity, pre, initial, activation, fit_initial, terms, l1, num_steps)


def _unrolled(
    observable: Callable[[Array, Array], Array],
    observed: Array,
    pre: Array,
    initial: Array,
    activation: Callable[[Array], Array],
    fit_initial: bool,
    terms: Collection[Powers],
    l1: float,
    num_steps: int,
) -> Plasticity:
    """Finds the most likely θ, and W₀ if `fit_initial` is set."""
    sought, l1, num_steps = (
        _checked_terms(terms),
        nonnegative_number("l1", l1),
        positive_integer("num_steps", num_steps),
    )
    unknowns = len(sought) + (math.prod(np.shape(initial)) if fit_initial else 0)
    seen = ~jnp.isnan(observed)
    _require_observations(seen.size, unknowns)
    _require_observations(jnp.sum(seen), unknowns)
    target = jnp.where(seen, observed, 0)

    def split(v: Array) -> tuple[Array, Array]:
        theta = jnp.zeros(SHAPE, v.dtype).at[tuple(np.transpose(sought))].set(v[: len(sought)])
        return theta, v[len(sought) :].reshape(initial.shape) if fit_initial else initial

    def residuals(v: Array, horizon: Array) -> Array:
        theta, W0 = split(v)

        def step(W: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
            y = activation(x @ W)
            return W + jnp.tensordot(theta, monomials(W, x, y), axes=3), (W, y)

        last, (W, y) = jax.lax.scan(step, W0, pre)
        predicted = observable(jnp.concatenate([W, last[None]]), y)
        within = jnp.arange(predicted.shape[0]) < horizon
        return jnp.where(seen & within[:, None, None], predicted - target, 0).reshape(-1)

    zeros = jnp.zeros(len(sought), target.dtype)
    start = jnp.concatenate([zeros, initial.reshape(-1) if fit_initial else zeros[:0]])
    penalty = l1 * (jnp.arange(start.size) < len(sought)).astype(start.dtype) if l1 else None
    count = jnp.sum(seen, dtype=target.dtype)

    # Over many steps the likelihood has several maxima; over few steps the observations are nearly linear in θ. So each
    # fit starts at the fit to fewer steps, unless θ = 0 fits better.
    def longer(v: Array, horizon: Array) -> tuple[Array, None]:
        def within(v: Array) -> Array:
            return residuals(v, horizon)

        v = jnp.where(jnp.sum(within(v) ** 2) < jnp.sum(within(start) ** 2), v, start)
        return descend(within, v, count=count, penalty=penalty, num_steps=num_steps), None

    whole = target.shape[0]
    v, _ = jax.lax.scan(longer, start, jnp.array([-(-whole // part) for part in (8, 4, 2, 1)]))
    everything = functools.partial(residuals, horizon=jnp.asarray(whole))
    found = judged(v, everything(v), jax.jacfwd(everything)(v), count)
    if l1:
        found = found._replace(
            standard_errors=jnp.full_like(found.standard_errors, jnp.nan),
            covariance=jnp.full_like(found.covariance, jnp.nan),
        )
    return _plasticity(found, sought, split(found.variables)[1])


def _plasticity(found: Solution, sought: tuple[Powers, ...], initial: Array) -> Plasticity:
    n, at = len(sought), tuple(np.transpose(sought))
    theta, errors = (
        jnp.zeros(SHAPE, values.dtype).at[at].set(values[:n]) for values in (found.variables, found.standard_errors)
    )
    return Plasticity(theta, errors, found.covariance[:n, :n], found.noise, initial)


def _checked_terms(terms: Collection[Powers]) -> tuple[Powers, ...]:
    sought = tuple(tuple(int(p) for p in powers) for powers in terms)
    wrong = [powers for powers in sought if powers not in ALL_TERMS]
    if wrong or not sought or len(set(sought)) < len(sought):
        raise ValueError(
            "terms must name each term once by its powers (a, b, c) of x^a y^b w^c, each 0, 1 or 2, "
            f"and at least one; got {list(terms)!r}"
        )
    return sought  # type: ignore[return-value]


def _require_steps(name: str, given: Array, weights: Array, axis: int) -> None:
    shape, at = np.shape(given), np.shape(weights)
    if len(at) != 3 or len(shape) != 3 or shape[0] != at[0] - 1 or shape[2] != at[axis]:
        what = "inputs" if axis == 1 else "units"
        raise ValueError(
            f"{name} must be of shape [steps, examples, {what}] where weights are of shape [steps + 1, inputs, units], "
            f"one more than there are steps; got {shape} and {at}"
        )


def _together(*given: Array) -> list[Array]:
    """Returns arrays of one floating dtype, float32 at least, in which solvers exist."""
    return in_one_dtype([jnp.asarray(one) for one in given])


def _require_observations(count: int | Array, unknowns: int) -> None:
    """Raises a ValueError unless there are more observations than unknowns; passes if their number is unknown yet."""
    try:
        few = bool(count <= unknowns)
    except jax.errors.ConcretizationTypeError:
        return
    if few:
        raise ValueError(
            f"there are {count} observations of {unknowns} unknowns: observe more steps, or name fewer terms"
        )
