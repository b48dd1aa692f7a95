"""Fixed prediction at rates below 1; that at 1 it is backprop, see test_zero_divergence.py."""

import chex
import jax
import jax.numpy as jnp
import pytest

import nl_jax as nl
from tests import problems

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def relaxed():
    """Of one hidden layer: the exact gradient, and fixed prediction's at a rate of ½ and with a tolerance."""
    with jax.enable_x64(True):
        problem = problems.chain()

        @jax.jit
        def run(params, batch):
            settings = {"three": {"num_steps": 3}, "enough": {"tolerance": 2**-8}, "forever": {"num_steps": 200}}
            settings["more"] = {"num_steps": 300, "tolerance": 2**-8}
            estimate = lambda s: nl.fixed_prediction(problem.objective, rate=0.5, **s).estimate(KEY, (), params, batch)
            exact = jax.grad(lambda params: jnp.mean(problem.objective(params, batch)))(params)
            return exact, {name: estimate(s) for name, s in settings.items()}

        return jax.device_get(run(problem.params, problem.batch))  # numpy's, to be judged outside x64


@pytest.mark.slow
def test_slower_rates_converge_geometrically(relaxed):
    exact, estimates = relaxed
    grads, _, info = estimates["three"]
    expected = {"hidden1": jax.tree.map(lambda g: (1 - 0.5**3) * g, exact["hidden1"]), "output": exact["output"]}
    chex.assert_trees_all_close(grads, expected, rtol=1e-12)
    assert int(info.evaluations) == 3 + 3
    chex.assert_trees_all_close(estimates["forever"][0], exact, rtol=1e-12)


def test_relaxation_ends_at_the_tolerance(relaxed):
    """Residuals are halved each step; more steps allowed, none taken."""
    _, estimates = relaxed
    assert int(estimates["enough"][2].evaluations) == 3 + 9
    chex.assert_trees_all_equal(estimates["more"], estimates["enough"])


def test_the_certificate_knows_how_far_it_is(relaxed):
    _, estimates = relaxed
    (three, enough, forever) = (estimates[name][2].residuals for name in ("three", "enough", "forever"))
    assert float(three.dual["hidden1"]) / float(enough.dual["hidden1"]) == pytest.approx(2**6)
    assert max(map(float, (forever.dual["hidden1"], forever.dual["output"], *three.primal.values()))) < 1e-15


def test_bad_rates_are_refused():
    objective = lambda params, batch, propagate: batch
    with pytest.raises(ValueError, match=r"rate must be below 2, or errors grow from step to step, got 2"):
        nl.fixed_prediction(objective, rate=2)
    with pytest.raises(ValueError, match="rate must be a finite Python number above 0, got 0"):
        nl.fixed_prediction(objective, rate=0)
