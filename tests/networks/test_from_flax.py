"""Flax linen modules in node space."""

import pytest

from tests.networks import adapted as models


@pytest.mark.parametrize("name", ["linen_convolution", "linen_transformer"])
def test_outputs_and_gradients_are_linens(name, x64, lenient):
    models.check_layers(name)
    models.check_gradients(name)


@pytest.mark.parametrize("estimator", models.NODE_SPACE)
def test_every_node_space_estimator_reaches_the_layers(estimator, x64, lenient):
    models.check_estimator("linen_convolution", estimator)


def test_the_audit_sees_the_layers(x64, lenient):
    models.check_audit("linen_convolution")
