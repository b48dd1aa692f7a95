"""The energy at rest against the energy minimised; against the estimator, see tests/estimators/constrained."""

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.theory.predictive_coding import equilibrium_energy


def test_it_is_the_minimum_over_the_hidden_axons(x64):
    """F is a quadratic function of them: one Newton step from anywhere is there."""
    draw = np.random.default_rng(0).normal
    weights = [jnp.asarray(draw(size=shape)) for shape in ((3, 4), (4, 2), (2, 3))]
    x, y = jnp.asarray(draw(size=3)), jnp.asarray(draw(size=3))

    def energy(hidden, penalty):
        a, b = hidden[:4], hidden[4:]
        errors = jnp.concatenate([a - x @ weights[0], b - a @ weights[1]])
        return 0.5 * jnp.sum((y - b @ weights[2]) ** 2) + penalty / 2 * jnp.sum(errors**2)

    @jax.jit
    @jax.vmap
    def run(penalty):
        start = jnp.linspace(-1.0, 1.0, 6)
        rest = start - jnp.linalg.solve(jax.hessian(energy)(start, penalty), jax.grad(energy)(start, penalty))
        return energy(rest, penalty), equilibrium_energy(weights, x, y, penalty)

    found, expected = run(jnp.array([0.1, 1.0, 30.0, 1e6]))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    loss = 0.5 * np.sum((y - np.linalg.multi_dot([x, *weights])) ** 2)
    np.testing.assert_allclose(expected[-1], loss, rtol=1e-4)  # μ → ∞
