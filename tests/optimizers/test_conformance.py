"""Line searches with estimators of every kind; that all other optimizers take all is tested with the estimators."""

import chex
import jax
import optax
import pytest

import nl_jax as nl
from tests import problems
from tests.registry import ESTIMATORS, LINE_SEARCHES

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("lenient")  # optax.adam's own arithmetic


def _searching(estimator, search="conjugate_gradient"):
    problem = problems.chain()
    learner = nl.learner(ESTIMATORS[estimator].make(problem.objective), LINE_SEARCHES[search]())
    return learner, learner.init(KEY, problem.params), problem.batch


@pytest.mark.parametrize(
    "name", ["lagrangian_backprop", "weight_rank_one", "forward_low_rank", "partition", "node_clean"]
)
def test_a_search_keeps_shapes_and_dtypes(name):
    learner, state, batch = _searching(name)
    after, info = jax.eval_shape(learner.step, KEY, state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert info.loss.shape == info.evaluations.shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("backprop", "conjugate_gradient"),
        ("weight_running_mean", "conjugate_gradient"),
        ("backprop", "inject_hyperparams"),
    ],
)
def test_lines_are_searched(name, search):
    """Trials are counted, one compilation serves all steps, the gradient in the search is the estimator's."""
    learner, state, batch = _searching(name, search)
    traces = []

    @jax.jit
    def step(key, state):
        traces.append(1)
        return learner.step(key, state, batch)

    after, info = step(KEY, state)
    again, _ = step(jax.random.key(1), after)
    assert len(traces) == 1
    chex.assert_tree_all_finite((again.params, info))
    trials = int(info.evaluations) / ESTIMATORS[name].evaluations - 1
    assert trials == int(optax.tree.get(after.optimizer, "num_linesearch_steps")) >= 1
