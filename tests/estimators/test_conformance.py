"""Every estimator of the library is certified by the kit that anyone's can be."""

import pytest

from nl_jax.conformance import Claims, certify
from tests.registry import ESTIMATORS

# Without a clean baseline the loss itself is noise, at the small steps that make the bias small: no number of keys
# that a test can spend tells them from a twin. They are judged in test_unbiased, on an error that is linear.
NOISY = ("weight_none", "node_none", "weight_running_mean")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_is_certified(name, x64):
    entry = ESTIMATORS[name]
    claims = Claims(entry.calibrated and name not in NOISY, not entry.derivative, entry.evaluations)
    certificate = certify(entry.make, claims)
    assert certificate.passed, str(certificate)
    found = certificate.rows
    assert found["randomness"].figures["random"] == entry.random
    assert found["layers"].figures["layers"] == entry.layers
