"""Every estimator of the library is certified by the kit that anyone's can be."""

import functools

import pytest

import nl_jax as nl
from nl_jax.evaluation.conformance import Claims, breadth, certify, contract, freedom
from nl_jax.evaluation.conformance.certifying import CHECKS
from nl_jax.evaluation.conformance.problem import chain, recurrent
from tests.estimators.test_loops import AGREES, BY_NAME
from tests.registry import ESTIMATORS

pytestmark = pytest.mark.slow

EVERYWHERE = (
    *("backprop", "backprop_recursion", "lagrangian_backprop", "fixed_prediction", "zero_divergence"),
    *("feedback_random", "weight_clean", "node_clean"),
)
"""Those that run on every problem, and without `jax.jit`: all exact ones, and one for each family of the others, which
differ in what they draw."""

EXTRA = (contract.eager, breadth.convolution, breadth.batch_norm, breadth.two_heads, breadth.half_precision)
USUAL = tuple(check for check in CHECKS if check not in (*EXTRA, freedom.locality))
"""Without the audit, which tests/evaluation/audit/test_audit.py compares with the formula of every estimator."""
BEYOND_LOOPS = tuple(check for check in USUAL if check is not breadth.loops)
"""For those that tests/estimators/test_loops.py compares with an unrolled program, exactly."""

ON_A_LOOP = (
    *("weight_none", "weight_antithetic", "evolution_strategy", "normalised", "mix"),
    *("forward_low_rank", "weight_flipout_antithetic", "subspace_random_antithetic"),
    *("auxiliary_coordinates", "feedback_sign_symmetric", "feedback_sign_concordant"),
)
"""Certified on a recurrent network alone, which has a layer outside its loop as well: its programs serve for both.
Noise in nodes compiles so much faster on a chain that it is certified there, and once more over time."""

# A small budget, that compiling is most of the time: what it cannot show is "not shown". That the same checks fail a
# bias of 5 % at a larger one, tests/evaluation/conformance/test_power.py tells.
NUM_KEYS = 1500

REFUSE_LOOPS = "zero_divergence", "admm"
REFUSE_OTHERS: dict[str, list[str]] = {}

IN_TIME = {
    "rtrl": (nl.rtrl, Claims()),
    "snap": (functools.partial(nl.snap, order=2), Claims()),  # of two units that all feed each other
    "uoro": (nl.uoro, Claims()),
    "truncated_backprop": (functools.partial(nl.truncated_backprop, window=2), Claims(calibrated=False)),
    "e_prop": (nl.e_prop, Claims(calibrated=False)),
    "rflo": (nl.rflo, Claims(calibrated=False)),
    "three_factor": (
        functools.partial(nl.three_factor, num_samples=8, baseline=nl.reward_baselines.leave_one_out()),
        Claims(gradient_free=True),
    ),
}
"""Rules of learning while time goes on, and their claims on a recurrent network."""


@pytest.mark.parametrize("name", IN_TIME)
def test_keeps_its_claims_in_time(name, x64):
    make, claims = IN_TIME[name]
    checks = (*USUAL, freedom.locality)  # the audit's own tests have few of these
    certificate = certify(make, claims, problem=recurrent, num_keys=NUM_KEYS, max_keys=NUM_KEYS, checks=checks)
    assert not certificate.failures, str(certificate)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_keeps_its_claims(name, x64):
    entry = ESTIMATORS[name]
    claims = Claims(entry.calibrated, not entry.derivative, entry.evaluations)
    checks = CHECKS if name in EVERYWHERE else BEYOND_LOOPS if name in {*AGREES, *BY_NAME} else USUAL
    problem = recurrent if name in ON_A_LOOP else chain
    certificate = certify(entry.make, claims, problem=problem, num_keys=NUM_KEYS, max_keys=NUM_KEYS, checks=checks)
    assert not certificate.failures, str(certificate)
    found = certificate.rows
    assert found["randomness"].figures["random"] == entry.random
    assert found["layers"].figures["layers"] == entry.layers
    assert certificate.refused == ["loops"] * (name in REFUSE_LOOPS) + REFUSE_OTHERS.get(name, [])
