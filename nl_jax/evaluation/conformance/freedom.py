"""Checks what an estimator needs and sees: layers, derivatives, other layers' activity."""

from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Params
from nl_jax.evaluation.audit.audit import audit
from nl_jax.evaluation.audit.report import require_verdict
from nl_jax.evaluation.conformance.certificate import CheckResult, Outcome
from nl_jax.evaluation.conformance.problem import Problem
from nl_jax.evaluation.conformance.subject import Subject, made


class Differentiated(Exception):
    """Raised when `_rough_tanh` or `_rough_loss` is differentiated."""


def layers(s: Subject) -> CheckResult:
    """Checks whether it takes any function of parameters and batch, or says that it needs `propagate`."""

    def layerless(params: Params, batch: Batch) -> Array:
        return (batch @ params) ** 2

    try:
        _estimate(s, Problem(layerless, jnp.ones(3), jnp.ones((2, 3)), None))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if "propagate" in str(error):
            return CheckResult("layers", "noted", "needs an objective that takes `propagate`", {"layers": True})
        said = f"did not run with one bare array for parameters: {type(error).__name__}: {error}"
        return CheckResult("layers", "noted", said, {"layers": None})
    return CheckResult("layers", "noted", "takes any function of parameters and batch", {"layers": False})


def derivatives(s: Subject) -> CheckResult:
    """Checks whether an activation or a loss is differentiated, with functions that raise if they are."""
    free = not differentiates(s)
    said = "differentiates neither activations nor losses" if free else "differentiates activations or losses"
    outcome: Outcome = "passed" if free else "failed"
    return CheckResult("derivatives", outcome if s.claims.gradient_free else "noted", said, {"gradient_free": free})


def differentiates(s: Subject) -> bool:
    """Whether it differentiates an activation or a loss."""
    try:
        _estimate(s, s.make_problem(_rough_tanh, _rough_loss))
    except Differentiated:
        return True
    return False


def locality(s: Subject) -> CheckResult:
    """Compares the verdict of `nl.audit` on its updates with the claim."""
    problem = s.problem
    verdict = audit(s.factory, problem.objective, problem.params, problem.batch).verdict
    if s.claims.verdict is not None:
        require_verdict(s.claims.verdict)
    if s.claims.verdict not in (None, verdict):
        return CheckResult("locality", "failed", f"{verdict}; claimed was {s.claims.verdict}", {"verdict": verdict})
    return CheckResult("locality", "noted" if s.claims.verdict is None else "passed", verdict, {"verdict": verdict})


def _estimate(s: Subject, problem: Problem) -> None:
    estimator = made(s.factory, problem.objective)
    at = problem.params, problem.batch
    key = jax.random.key(3)
    jax.eval_shape(lambda: estimator.estimate(key, estimator.init(key, problem.params), *at))  # traced, not run


def _refuse(*_: Any) -> Any:
    raise Differentiated


@jax.custom_jvp
def _rough_tanh(nu: Array) -> Array:
    return jnp.tanh(nu)


@jax.custom_jvp
def _rough_loss(outputs: Array, labels: Array) -> Array:
    return jnp.sum(jnp.square(outputs - jax.nn.one_hot(labels, outputs.shape[1], dtype=outputs.dtype)), axis=1)


_rough_tanh.defjvp(_refuse)
_rough_loss.defjvp(_refuse)
