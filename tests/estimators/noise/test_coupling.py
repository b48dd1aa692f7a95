"""Examples that interact: what stays unbiased, and that the rest is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax._core.paths import path_name
from nl_jax._core.products import use
from tests import problems
from tests.estimators.noise.test_unbiased import estimates, exact, largest_deviation

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
c = nl.connections
signs, batch_credit = nl.directions.rademacher(), nl.spaces.per_batch_credit()
nodes = functools.partial(nl.node_perturbation, num_samples=4, directions=signs)
flipout = functools.partial(nl.weight_perturbation, num_samples=4, directions=nl.directions.flipout())
forward_nodes = functools.partial(nl.forward_gradient, num_samples=4, space=nl.spaces.nodes)

TOGETHER = {
    "nodes": functools.partial(nodes, credit=batch_credit),
    "forward nodes": functools.partial(
        nl.forward_gradient, num_samples=4, space=functools.partial(nl.spaces.nodes, credit=batch_credit)
    ),
    "weights": functools.partial(nl.weight_perturbation, num_samples=4, directions=signs),
    "rank one": functools.partial(nl.weight_perturbation, num_samples=4, directions=nl.directions.rank_one()),
}
APART = {"nodes": nodes, "flipout": flipout, "forward nodes": forward_nodes}


def silent(objective):
    """The same objective, its connections not saying that they mix examples."""

    def mute(params, batch, propagate=nl.propagation.feedforward):
        def quiet(name, connection, activation, params, /, *inputs):
            return propagate(name, lambda params, *inputs: connection(params, *inputs), activation, params, *inputs)

        return objective(params, batch, propagate=quiet)

    return mute


def trace(estimator, params, batch):
    """As far as an estimate has to get to be refused."""
    state = estimator.init(KEY, params)
    jax.eval_shape(estimator.estimate, KEY, state, params, batch)


@pytest.mark.parametrize("name", TOGETHER)
def test_noise_that_the_batch_judges_together_is_unbiased(name, x64):
    problem = problems.batch_normed()
    samples = estimates(TOGETHER[name](problem.objective), problem.params, problem.batch)
    assert largest_deviation(samples, exact(problem.objective, problem.params, problem.batch)) < 5


@pytest.mark.parametrize("name", ["nodes", "flipout"])
def test_noise_that_each_example_judges_alone_would_be_biased(name, x64):
    problem = problems.batch_normed()
    samples = estimates(APART[name](silent(problem.objective)), problem.params, problem.batch)
    assert largest_deviation(samples, exact(problem.objective, problem.params, problem.batch)) > 5


@pytest.mark.parametrize("name", APART)
def test_and_is_refused(name):
    problem = problems.batch_normed()
    remedy = r"rank_one\(\)" if name == "flipout" else r"credit=nl\.spaces\.per_batch_credit\(\)"
    with pytest.raises(ValueError, match=rf"layer '(low|high)' mixes examples: .* would be biased; use .*{remedy}"):
        trace(APART[name](problem.objective), problem.params, problem.batch)


def one_normalised(position):
    layers = [nl.Layer("low", 3, c.dense(bias=False), nl.activations.tanh()), nl.Layer("output", 2, c.dense())]
    layers[position] = nl.batch_norm(layers[position])
    network = nl.network(nl.Layer("input", 2), *layers)
    batch = np.random.default_rng(1).normal(size=(4, 2)), np.arange(4) % 2
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.asarray(0.0).dtype)
    return nl.supervised(network.apply, nl.losses.cross_entropy), params, batch


def test_only_noise_below_a_mixing_layer_is_refused(x64):
    """Noise is added after the normalisation: that of the layer itself, and of those above, stays with its example."""
    objective, params, batch = one_normalised(0)
    assert largest_deviation(estimates(nodes(objective), params, batch), exact(objective, params, batch)) < 5
    objective, params, batch = one_normalised(1)
    with pytest.raises(ValueError, match="layer 'output' mixes examples"):
        trace(nodes(objective), params, batch)
    # Confined to a part that lies above, it is in its right again.
    trace(nl.partition(objective, {"low/*": nl.backprop, "*": nodes}), params, batch)


def test_a_connection_written_by_hand_says_so():
    def centred(params, x):
        nu = x @ params
        return nu - jnp.mean(nu, axis=0, keepdims=True)

    def objective(params, batch, propagate=nl.propagation.feedforward):
        hidden = propagate("hidden", lambda w, x: x @ w, jnp.tanh, params[0], batch)
        return propagate("centred", centred, jnp.tanh, params[1], hidden)[:, 0]

    at = [np.ones((2, 3), np.float32), np.ones((3, 1), np.float32)], np.ones((4, 2), np.float32)
    trace(nodes(objective), *at)
    centred.mixes_examples = True
    with pytest.raises(ValueError, match="layer 'centred' mixes examples"):
        trace(nodes(objective), *at)


def test_inputs_that_are_normalised_carry_no_noise():
    """Flipout's noise is in the weights: a mixing layer below all of them, or of none, is none of its business."""
    network = nl.network(
        nl.Layer("image", (2, 2, 1)),
        nl.batch_norm(nl.Layer("pixels", None, c.max_pool(1))),
        nl.Layer("vector", None, c.flatten()),
        nl.Layer("output", 2, c.dense()),
    )
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    batch = np.ones((4, 2, 2, 1), np.float32), np.arange(4) % 2
    trace(flipout(objective), jax.eval_shape(network.init, KEY), batch)


def test_weights_below_a_normalisation_are_still_only_multiplied():
    """So that structured noise keeps its form, and samples share the product with the data."""
    problem = problems.batch_normed()
    found = use(problem.objective, problem.params, problem.batch)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(problem.params)]
    weights = {path for path, multiplied in zip(paths, found.multiplied, strict=True) if multiplied}
    assert weights == {"low/weight", "high/low/weight", "high/input/weight", "output/weight"}
    first = {path for path, reads_data in zip(paths, found.reads_data, strict=True) if reads_data}
    assert first == {"low/weight", "high/input/weight"}
