"""Is its mean the gradient, and does averaging help? Judged by standard errors, beside a twin that must fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Batch, Objective, Params, State
from nl_jax.conformance.certificate import Outcome, Row
from nl_jax.conformance.contract import STEPS, distance, is_random, rounding, setting, some_steps_on
from nl_jax.conformance.problem import recurrent
from nl_jax.conformance.subject import Subject, flat, keys, made, sampler, subject

LIMIT = 5.0
"""Standard errors that a mean may lie from what it should be."""
TWIN = 1.2
"""How much too long the twin's estimates are, as a wrong count or a wrong σ² would make them."""
MORE = 4
"""How many times more samples the variance is compared at."""


def calibration(s: Subject) -> Row:
    """E ĝ = ∇ mean loss, per component and in length; without randomness ĝ is that gradient, up to rounding.

    From the first state, and from one some steps on.
    """
    g, later = gradient(s), some_steps_on(s)
    if not is_random(s):
        return _exactness(s, g, later)
    found = s.estimates()
    deviation, twin = largest_deviation(found, g), largest_deviation(TWIN * found, g)
    scale = found @ g / (g @ g)
    error = scale.std(ddof=1) / len(scale) ** 0.5
    said = (
        f"largest deviation of the mean of {len(found)} estimates: {deviation:.1f} standard errors "
        f"(a twin {TWIN} times too long: {twin:.1f}); ⟨ĝ, g⟩/‖g‖² = {scale.mean():.3f} ± {error:.3f}, "
        f"cosine of the mean {_cosine(found.mean(axis=0), g):.3f}"
    )
    figures = {"deviation": deviation, "twin": twin, "scale": float(scale.mean()), "scale_error": float(error)}
    if distance(later, s.state) > 0:
        figures["later"] = largest_deviation(s.estimates_from(later), g)
        said += f"; {STEPS} steps on, deviation {figures['later']:.1f}"
        deviation = max(deviation, figures["later"])
    if not s.claims.calibrated:
        return Row("calibration", "noted", said, figures)
    if deviation < LIMIT and twin <= LIMIT:
        return Row("calibration", "failed", f"{said}: the twin is not told apart, take more keys", figures)
    return Row("calibration", "passed" if deviation < LIMIT else "failed", said, figures)


def _exactness(s: Subject, g: np.ndarray, later: State) -> Row:
    estimate, on = (
        flat(s.estimate(jax.random.key(0), state, s.problem.params, s.problem.batch)[0]) for state in (s.state, later)
    )
    apart, apart_later = (float(np.linalg.norm(x - g) / np.linalg.norm(g)) for x in (estimate, on))
    said = f"differs from the gradient by {apart:.1e} of its length, cosine {_cosine(estimate, g):.4f}"
    if apart_later != apart:
        said += f"; {STEPS} steps on, by {apart_later:.1e}"
    well = max(apart, apart_later) <= rounding()
    outcome: Outcome = "noted" if not s.claims.calibrated else "passed" if well else "failed"
    return Row("calibration", outcome, said, {"difference": apart, "later": apart_later})


def variance(s: Subject) -> Row:
    """E‖ĝ − E ĝ‖²/‖g‖², and that it falls at least as 1/K where there is a setting `num_samples`."""
    if not is_random(s):
        return Row("variance", "noted", "none: it does not use its key")
    g = gradient(s)
    relative, error = spread(s.estimates(), g)
    few = setting(s, "num_samples")
    if few is None:
        said = f"relative variance {relative:.3g} ± {error:.2g}; no setting named num_samples"
        return Row("variance", "noted", said, {"relative": relative, "error": error})
    many = MORE * few
    estimator = made(s.factory, s.problem.objective, num_samples=many)
    state = estimator.init(jax.random.key(0), s.problem.params)
    more, more_error = spread(sampler(estimator, s.problem)(keys(max(2, s.num_keys // MORE)), state), g)
    ratio = relative / more
    ratio_error = ratio * ((error / relative) ** 2 + (more_error / more) ** 2) ** 0.5
    said = (
        f"relative variance {relative:.3g} with K = {few}, {more:.3g} with {many}: "
        f"{ratio:.2f} ± {ratio_error:.2f} times less"
    )
    figures = {"relative": relative, "error": error, "ratio": ratio, "ratio_error": ratio_error}
    if not LIMIT * ratio_error < MORE - 1:
        return Row("variance", "failed", f"{said}: not told from no less at all, take more keys", figures)
    if ratio > MORE - LIMIT * ratio_error:
        return Row("variance", "passed", said, figures)
    return Row("variance", "failed", f"{said}: it falls slower than 1/K", figures)


def loops(s: Subject) -> Row:
    """Calibration in a loop over time; or a ValueError, which says why not and what to use instead."""
    if s.make_problem is recurrent:
        return Row("loops", "noted", "all of this is in a loop over time", {"loops": True})
    try:
        row = calibration(subject(s.factory, s.claims, recurrent, s.num_keys))
    except ValueError as refusal:
        return Row("loops", "noted", f"refused: {refusal}", {"loops": False})
    return row._replace(check="loops", figures={**row.figures, "loops": True})


def gradient(s: Subject) -> np.ndarray:
    """g, the exact gradient of the mean loss, [parameters]."""
    return flat(_gradient(s.problem.objective, s.problem.params, s.problem.batch))


@functools.partial(jax.jit, static_argnums=0)  # once for all checks, and all estimators on one problem
def _gradient(objective: Objective, params: Params, batch: Batch) -> Params:
    return jax.grad(lambda p: jnp.mean(objective(p, batch)))(params)


def largest_deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the samples' mean from what is expected, in measured standard errors: per component and in length.

    The length, ⟨ĝ, g⟩/‖g‖² against 1, is known far better than any single component.
    """
    found = np.column_stack([found, found @ expected / (expected @ expected)])
    expected = np.append(expected, 1.0)
    error = found.std(axis=0, ddof=1) / len(found) ** 0.5 + rounding() * 1e-4  # exact parts vary by rounding alone
    return float(np.max(np.abs(found.mean(axis=0) - expected) / error))


def spread(found: np.ndarray, g: np.ndarray) -> tuple[float, float]:
    """The relative variance E‖ĝ − E ĝ‖²/‖g‖² and its standard error."""
    squares = ((found - found.mean(axis=0)) ** 2).sum(axis=1) / (g @ g)
    return float(squares.mean()), float(squares.std(ddof=1) / len(squares) ** 0.5)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
