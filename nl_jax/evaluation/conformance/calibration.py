"""Checks whether an estimator's mean is the gradient and whether averaging reduces its variance."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Params, State
from nl_jax.evaluation.conformance.certificate import CheckResult, Outcome
from nl_jax.evaluation.conformance.contract import is_random, rounding
from nl_jax.evaluation.conformance.exact import gradient
from nl_jax.evaluation.conformance.power import Bias, sequential
from nl_jax.evaluation.conformance.subject import Subject, by_leaf, keys, made, sampler, setting

LIMIT = 5.0
"""Largest allowed deviation of a mean from its expected value, in standard errors."""
MORE = 4
"""Factor in the number of samples between the two variances compared."""


def calibration(s: Subject) -> CheckResult:
    """Checks that E ĝ = ∇ mean loss in every leaf; without randomness ĝ must be that gradient, up to rounding."""
    return (drawn if is_random(s) else exact)(s, "calibration", s.state, s.problem.params)


def drawn(s: Subject, check: str, state: State, params: Params) -> CheckResult:
    """Checks whether the mean is the gradient; draws until that is shown or the budget is spent; see `power`."""
    g = gradient(s.problem, params)
    ends = np.cumsum([part.size for part in g.values()])[:-1]
    initial = state is s.state and params is s.problem.params

    def draw(block: int) -> dict[str, np.ndarray]:
        found = s.estimates() if block == 0 and initial else s.sample(keys(s.num_keys, block), state, params)
        return dict(zip(g, np.split(found, ends, axis=1), strict=True))

    budget = s.max_keys if s.claims.calibrated else s.num_keys
    bias = sequential(draw, g, budget, tolerance=rounding(_coarsest(params)))
    leaves = {name: leaf._asdict() for name, leaf in bias.leaves.items()}
    figures = {"estimates": bias.estimates, "looks": bias.looks, "target": bias.target}
    outcome, said = _verdict(bias, s.claims.calibrated)
    return CheckResult(check, outcome, said, {**figures, "leaves": leaves})


def _verdict(bias: Bias, claimed: bool) -> tuple[Outcome, str]:
    found = {
        name: f"off by {leaf.distance:.1%} of the gradient's length in {name} (⟨ĝ, g⟩/‖g‖² = {leaf.length:.3f} "
        f"± {leaf.length_error:.3f})"
        for name, leaf in bias.leaves.items()
    }
    name, worst = max(bias.leaves.items(), key=lambda item: item[1].visible)
    drew = f"the mean of {bias.estimates:,} estimates"
    if not claimed:
        worst_name = max(bias.leaves, key=lambda name: bias.leaves[name].distance)
        return "noted", f"{drew} is {found[worst_name]}"
    if bias.biased:
        return "failed", f"{drew} is {'; '.join(found[name] for name in bias.biased)}"
    if bias.unseen:
        needed = bias.estimates * 2 ** math.ceil(2 * math.log2(worst.visible / bias.target))  # reached by doubling
        return "not shown", (
            f"{drew} shows no bias, but could have missed one of {worst.visible:.1%} in {name}: "
            f"for {bias.target:.1%} take max_keys of about {needed:,}"
        )
    return "passed", f"{drew} shows no bias; one of {worst.visible:.1%} in any leaf and direction would have been seen"


def exact(s: Subject, check: str, state: State, params: Params) -> CheckResult:
    """Checks whether a single estimate is the gradient up to rounding, leaf by leaf."""
    estimate, g = by_leaf(s.estimate(keys(1)[0], state, params, s.problem.batch)[0]), gradient(s.problem, params)
    whole = float(np.linalg.norm(np.concatenate(list(g.values()))))
    leaves = {}
    for name, part in g.items():
        norm = float(np.linalg.norm(part))
        norm = norm if norm > 1e-12 * whole else whole  # a leaf without gradient uses the whole gradient's norm
        leaves[name] = {"difference": float(np.linalg.norm(estimate[name] - part)) / norm}
    name = max(leaves, key=lambda name: leaves[name]["difference"])
    apart = leaves[name]["difference"] if np.all(np.isfinite(np.concatenate(list(estimate.values())))) else np.inf
    cosine = _cosine(*(np.concatenate(list(x.values())) for x in (estimate, g)))
    said = f"differs from the gradient by {apart:.1e} of its length at most, in {name}; cosine {cosine:.4f}"
    well = apart <= rounding(_coarsest(params))
    outcome: Outcome = "noted" if not s.claims.calibrated else "passed" if well else "failed"
    return CheckResult(check, outcome, said, {"difference": apart, "leaves": leaves})


def _coarsest(params: Params) -> jnp.dtype:
    """Returns the parameters' dtype of lowest precision."""
    return max((jnp.result_type(leaf) for leaf in jax.tree.leaves(params)), key=lambda dtype: jnp.finfo(dtype).eps)


def variance(s: Subject) -> CheckResult:
    """Measures E‖ĝ − E ĝ‖²/‖g‖², and checks that it falls at least as 1/K if there is a setting `num_samples`."""
    if not is_random(s):
        return CheckResult("variance", "noted", "none: it does not use its key")
    g = np.concatenate(list(gradient(s.problem, s.problem.params).values()))
    relative, error = spread(s.estimates(), g)
    few = setting(s.factory, "num_samples")
    if few is None:
        said = f"relative variance {relative:.3g} ± {error:.2g}; no setting named num_samples"
        return CheckResult("variance", "noted", said, {"relative": relative, "error": error})
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
        return CheckResult("variance", "failed", f"{said}: not told from no less at all, take more keys", figures)
    if ratio > MORE - LIMIT * ratio_error:
        return CheckResult("variance", "passed", said, figures)
    return CheckResult("variance", "failed", f"{said}: it falls slower than 1/K", figures)


def spread(found: np.ndarray, g: np.ndarray) -> tuple[float, float]:
    """Computes the relative variance E‖ĝ − E ĝ‖²/‖g‖² and its standard error."""
    squares = ((found - found.mean(axis=0)) ** 2).sum(axis=1) / (g @ g)
    return float(squares.mean()), float(squares.std(ddof=1) / len(squares) ** 0.5)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
