"""Is its mean the gradient, and does averaging help? Judged by standard errors, beside a twin that must fail."""

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import GradientEstimator, Params
from nl_jax.conformance.certificate import Outcome, Row
from nl_jax.conformance.contract import has_setting, is_random, rounding
from nl_jax.conformance.subject import Subject, made

LIMIT = 5.0
"""Standard errors that a mean may lie from what it should be."""
TWIN = 1.2
"""How much too long the twin's estimates are, as a wrong count or a wrong σ² would make them."""


def calibration(s: Subject) -> Row:
    """E ĝ = ∇ mean loss, per component and in length; without randomness ĝ is that gradient, up to rounding."""
    g = gradient(s)
    if not is_random(s):
        estimate = _flat(s.estimate(jax.random.key(0), s.state, s.problem.params, s.problem.batch)[0])
        apart = float(np.linalg.norm(estimate - g) / np.linalg.norm(g))
        said = f"differs from the gradient by {apart:.1e} of its length, cosine {_cosine(estimate, g):.4f}"
        outcome: Outcome = "noted" if not s.claims.calibrated else "passed" if apart <= rounding() else "failed"
        return Row("calibration", outcome, said, {"difference": apart})
    found = samples(s.estimator, s)
    deviation, twin = largest_deviation(found, g), largest_deviation(TWIN * found, g)
    scale = found @ g / (g @ g)
    error = scale.std(ddof=1) / len(scale) ** 0.5
    said = (
        f"largest deviation of the mean of {len(found)} estimates: {deviation:.1f} standard errors "
        f"(a twin {TWIN} times too long: {twin:.1f}); ⟨ĝ, g⟩/‖g‖² = {scale.mean():.3f} ± {error:.3f}, "
        f"cosine of the mean {_cosine(found.mean(axis=0), g):.3f}"
    )
    figures = {"deviation": deviation, "twin": twin, "scale": float(scale.mean()), "scale_error": float(error)}
    if not s.claims.calibrated:
        return Row("calibration", "noted", said, figures)
    if deviation < LIMIT and twin <= LIMIT:
        return Row("calibration", "failed", f"{said}: the twin is not told apart, take more keys", figures)
    return Row("calibration", "passed" if deviation < LIMIT else "failed", said, figures)


def variance(s: Subject) -> Row:
    """E‖ĝ − E ĝ‖²/‖g‖², and that it falls at least as 1/K where there is a setting `num_samples`."""
    if not is_random(s):
        return Row("variance", "noted", "none: it does not use its key")
    if not has_setting(s, "num_samples"):
        relative, error = spread(samples(s.estimator, s), gradient(s))
        said = f"relative variance {relative:.3g} ± {error:.2g}; no setting named num_samples"
        return Row("variance", "noted", said, {"relative": relative, "error": error})
    few, many = 2, 8
    (v_few, e_few), (v_many, e_many) = (
        spread(samples(made(s.factory, s.problem.objective, num_samples=k), s), gradient(s)) for k in (few, many)
    )
    ratio = v_few / v_many
    error = ratio * ((e_few / v_few) ** 2 + (e_many / v_many) ** 2) ** 0.5
    said = f"relative variance {v_few:.3g} (K = {few}), {v_many:.3g} (K = {many}): {ratio:.2f} ± {error:.2f} times less"
    figures = {"few": v_few, "many": v_many, "ratio": ratio, "ratio_error": error}
    if ratio > many / few - LIMIT * error:
        return Row("variance", "passed", said, figures)
    return Row("variance", "failed", f"{said}: it falls slower than 1/K", figures)


def samples(estimator: GradientEstimator, s: Subject) -> np.ndarray:
    """Estimates for as many keys, [keys, parameters], all from the first state."""
    state = estimator.init(jax.random.key(0), s.problem.params)
    keys = jax.random.split(jax.random.key(11), s.num_keys)
    grads = jax.jit(jax.vmap(lambda key: estimator.estimate(key, state, s.problem.params, s.problem.batch)[0]))(keys)
    return np.concatenate([np.reshape(x, (s.num_keys, -1)) for x in jax.tree.leaves(grads)], axis=1)


def gradient(s: Subject) -> np.ndarray:
    """g, the exact gradient of the mean loss, [parameters]."""
    return _flat(jax.jit(jax.grad(lambda p: jnp.mean(s.problem.objective(p, s.problem.batch))))(s.problem.params))


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


def _flat(tree: Params) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
