"""Every estimator of the library is certified by the kit that anyone's can be."""

import functools

import pytest

import nl_jax as nl
from nl_jax.conformance import Claims, certify
from nl_jax.conformance.problem import recurrent
from tests.registry import ESTIMATORS

# Without a clean baseline the loss itself is noise, at the small steps that make the bias small: no number of keys
# that a test can spend tells them from a twin. They are judged in test_unbiased, on an error that is linear.
NOISY = ("weight_none", "node_none", "weight_running_mean")


NEED_MORE = {"node_batch_credit": 6000}
"""Keys for a mean in a loop, where every step's noise adds to one number for the whole batch."""

REFUSE_LOOPS = "zero_divergence", "admm"

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


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_TIME)
def test_is_certified_in_time(name, x64):
    make, claims = IN_TIME[name]
    certificate = certify(make, claims, problem=recurrent)
    assert certificate.passed, str(certificate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_is_certified(name, x64):
    entry = ESTIMATORS[name]
    claims = Claims(entry.calibrated and name not in NOISY, not entry.derivative, entry.evaluations)
    certificate = certify(entry.make, claims, num_keys=NEED_MORE.get(name, 3000))
    assert certificate.passed, str(certificate)
    found = certificate.rows
    assert found["randomness"].figures["random"] == entry.random
    assert found["layers"].figures["layers"] == entry.layers
    assert found["loops"].figures["loops"] == (name not in REFUSE_LOOPS)
