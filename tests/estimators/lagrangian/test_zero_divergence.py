"""Z-IL is backprop, and so is fixed prediction: one compilation a problem for both."""

import chex
import jax
import jax.numpy as jnp
import pytest

import nl_jax as nl
from tests.problems import PROBLEMS

KEY = jax.random.key(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_both_are_backprop(name, x64):
    """Whatever the program: skip connections, tied weights, convolutions, parameters outside layers."""
    problem = PROBLEMS[name]()

    @jax.jit
    def run(params, batch):
        makes = nl.fixed_prediction, nl.zero_divergence
        estimated = [make(problem.objective).estimate(KEY, (), params, batch) for make in makes]
        exact = jax.grad(lambda params: jnp.mean(problem.objective(params, batch)))(params)
        return exact, [grads for grads, _, _ in estimated], [info.evaluations for _, _, info in estimated]

    exact, estimates, (fixed, _) = run(problem.params, problem.batch)
    for grads in estimates:
        chex.assert_trees_all_close(grads, exact, rtol=1e-12, atol=1e-15)
    assert int(fixed) <= 3 + 4 + 1  # the deepest of up to four layers, and one step to see that nothing moves any more
