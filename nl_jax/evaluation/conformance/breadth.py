"""Checks claims on other networks, in half precision, and after a hundred steps of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.base import Params, State
from nl_jax.evaluation.conformance import problem
from nl_jax.evaluation.conformance.calibration import calibration, drawn, exact
from nl_jax.evaluation.conformance.certificate import CheckResult
from nl_jax.evaluation.conformance.contract import is_random
from nl_jax.evaluation.conformance.freedom import differentiates
from nl_jax.evaluation.conformance.problem import MakeProblem
from nl_jax.evaluation.conformance.subject import Subject, subject

STEPS = 100
"""Training steps before an estimator is checked again."""
OPTIMIZER = optax.adam(1e-2)
"""Its steps do not depend on the scale of an uncalibrated estimator."""


def training(s: Subject) -> CheckResult:
    """Checks that after 100 steps of Adam parameters, state and losses are finite and calibration still holds."""
    params, state, loss = s.problem.params, s.state, jnp.zeros(())
    optimizer = OPTIMIZER.init(params)
    for step, key in enumerate(jax.random.split(jax.random.key(13), STEPS)):
        grads, state, info = s.estimate(key, state, params, s.problem.batch)
        params, optimizer = _updated(grads, optimizer, params)
        loss = info.loss
        if not _finite((params, state, loss)):
            said = f"not finite after step {step + 1} of {STEPS} of Adam"
            return CheckResult("training", "failed", said, {"steps": step + 1})
    row = (drawn if is_random(s) else exact)(s, "training", state, params)
    said = f"{STEPS} steps of Adam on, at a loss of {float(loss):.3g}: {row.said}"
    return row._replace(said=said, figures={**row.figures, "steps": STEPS, "loss": float(loss)})


@jax.jit  # one program for all estimators on one problem
def _updated(grads: Params, optimizer: State, params: Params) -> tuple[Params, State]:
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        updates, optimizer = OPTIMIZER.update(grads, optimizer, params)
    return optax.apply_updates(params, updates), optimizer


def _finite(tree: State) -> bool:
    return all(
        bool(np.all(np.isfinite(np.asarray(leaf, np.float64))))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    )


def loops(s: Subject) -> CheckResult:
    """Checks calibration in a loop over time; a refusal is a ValueError with the reason and an alternative."""
    if s.make_problem is problem.recurrent:
        return CheckResult("loops", "noted", "all of this is in a loop over time", {"served": True})
    return _on(s, "loops", problem.recurrent)


def convolution(s: Subject) -> CheckResult:
    """Checks calibration where a weight is used at many positions of an image."""
    return _on(s, "convolution", problem.convolution)


def batch_norm(s: Subject) -> CheckResult:
    """Checks calibration where examples interact."""
    return _on(s, "batch norm", problem.batch_norm)


def two_heads(s: Subject) -> CheckResult:
    """Checks calibration where two outputs are read from one hidden layer."""
    return _on(s, "two heads", problem.two_heads)


def half_precision(s: Subject) -> CheckResult:
    """Checks calibration for bfloat16 parameters, to the root of its resolution: 9 % of the gradient's length."""
    row = _on(s, "half precision", problem.half_precision)
    return row._replace(said=f"{row.said}. {UNSUITED_STEP}") if row.outcome == "failed" and _takes_steps(s) else row


UNSUITED_STEP = (
    "Its mean is right in full precision, and it takes no derivatives: if it takes finite differences, their step, "
    "such as sigma, is likely too small for bfloat16, which resolves "
    f"{float(jnp.finfo(jnp.bfloat16).eps):.2g} next to 1, or so large that curvature biases it. Choose it by the "
    "parameters' dtype, as nl.weight_perturbation does if sigma is left out"
)


def _takes_steps(s: Subject) -> bool:
    """Whether it may take finite differences that are right in full precision, as one block of draws shows it."""
    return not differentiates(s) and calibration(s._replace(max_keys=s.num_keys)).outcome != "failed"


def _on(s: Subject, check: str, make_problem: MakeProblem) -> CheckResult:
    """Checks another problem; an estimator random on the first is assumed random here, which saves a compilation."""
    random = is_random(s)
    try:
        other = subject(s.factory, s.claims, make_problem, s.num_keys, s.max_keys)
        judge = drawn if random or is_random(other) else exact
        row = judge(other, check, other.state, other.problem.params)
    except ValueError as refusal:
        return CheckResult(check, "refused", str(refusal), {"served": False})
    return row._replace(figures={**row.figures, "served": True})
