"""Multiplier methods and ADMM end at backpropagation's gradient, and say how far they are from it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from tests import problems

KEY = jax.random.key(0)
part = functools.partial

METHODS = {
    "primal_dual": part(nl.primal_dual, tolerance=0.0),
    "extragradient": part(nl.extragradient, damping=1.0, step_size=0.15, num_steps=1500, tolerance=0.0),
    "augmented_lagrangian": part(nl.augmented_lagrangian, penalty=5.0, num_outer=200, tolerance=0.0),
    "admm": part(nl.admm, tolerance=0.0, num_steps=150),
    "admm_descent": part(nl.admm, solve=nl.layer_solves.gradient_descent(0.2, 5), num_steps=200, tolerance=0.0),
}
# Curved units under large weights, and the kinks of max-pooling: a large penalty, and patience.
STIFF = {"step_size": 0.005, "multiplier_step_size": 20.0, "damping": 20.0, "num_steps": 6000}


def _flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _error(make, problem):
    @jax.jit
    def error():
        at = KEY, (), problem.params, problem.batch
        estimates = [make(problem.objective, start=s).estimate(*at) for s in (nl.starts.feedforward, nl.starts.zeros)]
        exact = _flat(jax.grad(lambda p: jnp.mean(problem.objective(p, problem.batch)))(problem.params))
        errors = [jnp.linalg.norm(_flat(grads) - exact) / jnp.linalg.norm(exact) for grads, _, _ in estimates]
        return jnp.stack(errors), estimates[1][2].residuals

    return error()


@pytest.mark.parametrize("problem", [problems.one_layer, problems.chain, problems.skip, problems.tied])
@pytest.mark.parametrize("name", METHODS)
def test_ends_at_the_gradient_from_either_start(name, problem, x64):
    errors, residuals = _error(METHODS[name], problem())
    print(name, problem.__name__, errors)
    np.testing.assert_array_less(errors, 1e-8)


@pytest.mark.parametrize("problem", [problems.closed_over, problems.convolution])
def test_stiff(problem, x64):
    errors, residuals = _error(part(METHODS["primal_dual"], **STIFF), problem())
    print(problem.__name__, errors)
    np.testing.assert_array_less(errors, 1e-8)
