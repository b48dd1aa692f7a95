"""What finite differences do, on the network for which they can be worked out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward

n = nl.nudges
NUDGES = [n.one_sided(0.5), n.one_sided(-0.3), n.symmetric(0.5), n.n_point(0.5, 4), n.circle(0.5, 4)]


def scalar(w, u, propagate=feedforward):
    """E = ½x² − wux."""
    return propagate("only", lambda w, u: w * u, lambda nu: nu, w, u)


@pytest.fixture(scope="module")
def factors():
    """Every nudge's estimate over the gradient (wu − y)u, on E with C = ½(x − y)²."""
    with jax.enable_x64(True):
        # Not optax's squared error, which refuses the complex numbers of the circle.
        objective = nl.supervised(scalar, lambda x, target: jnp.sum((x - target) ** 2, axis=1) / 2)
        w, batch = jnp.float64(0.7), (jnp.array([[2.0], [1.0]]), jnp.array([[0.3], [-1.0]]))

        def estimates(w, batch):
            make = lambda nudge: nl.equilibrium_propagation(objective, nudge=nudge, num_steps=200, tolerance=0.0)
            exact = jax.grad(lambda w: jnp.mean(objective(w, batch)))(w)
            return [make(nudge).estimate(jax.random.key(0), (), w, batch)[0] / exact for nudge in NUDGES]

        return np.asarray(jax.jit(estimates)(w, batch))


@pytest.mark.slow
def test_closed_form_of_every_stencil(factors):
    products = [np.prod([beta / (1 + beta) for beta in nudge.strengths]) for nudge in NUDGES]
    np.testing.assert_allclose(factors, 1 - np.asarray(products), rtol=1e-13)


def test_closed_forms_of_the_literature(factors):
    """1/(1 + β) (Scellier & Bengio 2017), 1/(1 − β²) (Laborieux et al. 2021), 1/(1 − β^N) on the circle."""
    np.testing.assert_allclose(factors, [1 / 1.5, 1 / 0.7, 4 / 3, 44 / 45, 16 / 15], rtol=1e-13)


@pytest.mark.parametrize("nudge", NUDGES)
def test_polynomials_up_to_the_number_of_points_are_differentiated_exactly(nudge):
    points = np.asarray(nudge.strengths)
    for power in range(1, len(points) + 2):
        slope = np.sum(np.asarray(nudge.weights) * points**power)
        assert np.isclose(slope, power == 1, atol=1e-14) == (power <= len(points))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: n.one_sided(0), "beta must be a finite Python number other than 0"),
        (lambda: n.symmetric(-0.1), "beta must be a finite Python number above 0"),
        (lambda: n.n_point(0.1, 3), "num_points must be even"),
        (lambda: n.circle(0.1, 0), "num_points must be a whole number"),
    ],
)
def test_bad_settings_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
