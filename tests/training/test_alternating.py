import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from tests import problems

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
SCALES = ("*/gamma", "*/beta")
noisy = functools.partial(nl.weight_perturbation, num_samples=2)


def _step(learner, problem, key=KEY):
    return jax.jit(learner.step)(key, learner.init(KEY, problem.params), problem.batch)


@pytest.mark.parametrize("factory", [nl.backprop, noisy])
def test_one_stage_is_the_learner(factory):
    problem = problems.chain()
    optimizer = optax.sgd(0.1, momentum=0.9)
    state, info = _step(nl.alternating(problem.objective, [nl.Stage("*", factory, optimizer)]), problem)
    own = jax.random.split(KEY, 1)[0]
    expected, expected_info = _step(nl.learner(factory(problem.objective), optimizer), problem, own)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-5, atol=1e-7)  # other programs round otherwise
    chex.assert_trees_all_equal(info[:2], expected_info[:2])
    assert int(state.step) == 1


def test_two_stages_are_two_steps_by_hand(x64):
    """Seed 001 §5: (a) γ and β, at the z of the previous round; (b) the weights, by then new γ and β."""
    problem = problems.batch_normed()
    stages = [nl.Stage(SCALES, nl.backprop, optax.sgd(0.5)), nl.Stage("*", nl.backprop, optax.sgd(0.2))]
    state, info = _step(nl.alternating(problem.objective, stages), problem)

    @jax.jit
    @jax.value_and_grad
    def gradient(params):
        return jnp.mean(problem.objective(params, problem.batch))

    def moved(params, rate_of_scales, rate_of_weights):
        loss, grads = gradient(params)

        def move(path, w, g):
            return np.asarray(w) - (rate_of_scales if path[-1].key in ("gamma", "beta") else rate_of_weights) * g

        return loss, jax.tree_util.tree_map_with_path(move, params, grads)

    before, after_scales = moved(problem.params, 0.5, 0.0)
    _, expected = moved(after_scales, 0.0, 0.2)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-12, atol=1e-15)
    _, at_once = moved(problem.params, 0.5, 0.2)
    assert np.abs(at_once["low"]["weight"] - expected["low"]["weight"]).max() > 1e-4  # another thing
    np.testing.assert_allclose(info.loss, before, rtol=1e-12)
    assert int(info.evaluations) == 6


def test_stages_keep_their_own_states():
    problem = problems.batch_normed()
    per_stage = functools.partial(nl.node_perturbation, credit=nl.spaces.per_batch_credit(), num_samples=2)
    running = functools.partial(nl.weight_perturbation, num_samples=1, baseline=nl.baselines.running_mean())
    stages = [
        nl.Stage("*/gamma", nl.backprop, optax.sgd(0.1)),
        nl.Stage("*/beta", running, optax.sgd(1e-6)),
        nl.Stage("*", per_stage, optax.sgd(0.1, momentum=0.9)),
    ]
    learner = nl.alternating(problem.objective, stages)
    state, history = nl.fit(
        learner, KEY, learner.init(KEY, problem.params), problem.batch, num_steps=3, batch_size=4, progress=False
    )
    assert history.evaluations.tolist() == [3 + 1 + 4] * 3
    assert history.loss.shape == (3,)
    assert [len(jax.tree.leaves(s)) > 0 for s in state.estimator] == [False, True, False]
    momentum = jax.tree.leaves(state.optimizer[2])
    assert len(momentum) == 6  # the weights and biases, and no γ or β
    assert jax.tree.structure(state.params) == jax.tree.structure(problem.params)


def test_each_stage_draws_noise_of_its_own(x64):
    problem = problems.chain()
    stages = [nl.Stage("output/*", noisy, optax.sgd(0.0)), nl.Stage("*", noisy, optax.sgd(0.1))]
    state, _ = _step(nl.alternating(problem.objective, stages), problem)
    chex.assert_trees_all_equal(state.params["output"], problem.params["output"])
    own = {f"hidden1/{name}": leaf for name, leaf in problem.params["hidden1"].items()}

    def part(share, batch):
        hidden = {name: share[f"hidden1/{name}"] for name in ("weight", "bias")}
        return problem.objective({**problem.params, "hidden1": hidden}, batch)

    estimate = jax.jit(noisy(part).estimate)
    first, second = jax.random.split(KEY, 2)
    for key, agrees in ((first, False), (second, True)):
        grads, _, _ = estimate(key, (), own, problem.batch)
        moved = own["hidden1/weight"] - 0.1 * grads["hidden1/weight"]
        assert np.allclose(state.params["hidden1"]["weight"], moved, atol=1e-6) == agrees


def test_every_parameter_is_in_one_stage():
    problem = problems.chain()

    def init(*patterns):
        stages = [nl.Stage(pattern, nl.backprop, optax.sgd(0.1)) for pattern in patterns]
        return nl.alternating(problem.objective, stages).init(KEY, problem.params)

    assert [sorted(s) for s in map(jax.tree.leaves, init("output/*", "*").optimizer)] == [[], []]
    with pytest.raises(ValueError, match="no pattern of stages matches parameter 'hidden1/bias'"):
        init("output/*")
    with pytest.raises(ValueError, match=r"pattern 'readout' of stages gets no parameter, .*; the paths are hidden1/b"):
        init(("readout", "output/*"), "*")
    with pytest.raises(ValueError, match=r"pattern '\*' of stages gets no parameter, earlier patterns took them"):
        init("*", "*")


def test_patterns_of_an_iterator_are_not_used_up_by_init():
    problem = problems.chain()
    for patterns in (["output/*"], (pattern for pattern in ["output/*"])):
        stages = [nl.Stage(patterns, nl.backprop, optax.sgd(0.0)), nl.Stage("*", nl.backprop, optax.sgd(0.1))]
        state, _ = _step(nl.alternating(problem.objective, stages), problem)
        chex.assert_trees_all_equal(state.params["output"], problem.params["output"])
        assert (state.params["hidden1"]["weight"] != problem.params["hidden1"]["weight"]).any()


def test_what_will_not_do_is_named():
    problem = problems.chain()
    make = functools.partial(nl.alternating, problem.objective)
    with pytest.raises(ValueError, match="stages must name at least one"):
        make([])
    with pytest.raises(ValueError, match=r"a stage must be nl\.Stage"):
        make([("*", nl.backprop, optax.sgd(0.1))])
    with pytest.raises(ValueError, match=r"a stage must be nl\.Stage.*factory uncalled"):
        make([nl.Stage("*", nl.backprop(problem.objective), optax.sgd(0.1))])
    with pytest.raises(ValueError, match="one pattern at least"):
        make([nl.Stage((), nl.backprop, optax.sgd(0.1)), nl.Stage("*", nl.backprop, optax.sgd(0.1))])
    for patterns in (3, None, ["*", 3]):
        with pytest.raises(ValueError, match="one pattern at least, each a string"):
            make([nl.Stage(patterns, nl.backprop, optax.sgd(0.1))])
    with pytest.raises(ValueError, match="optimizer must be an optax optimizer"):
        make([nl.Stage("*", nl.backprop, 0.1)])
    with pytest.raises(ValueError, match="sigma must be"):
        make([nl.Stage("*", functools.partial(nl.weight_perturbation, sigma=-1), optax.sgd(0.1))])
    learner = make([nl.Stage("*", nl.backprop, optax.sgd(0.1))])
    single = nl.learner(nl.backprop(problem.objective), optax.sgd(0.1)).init(KEY, problem.params)
    with pytest.raises(ValueError, match="state must be of 1 stages"):
        learner.step(KEY, single, problem.batch)
    with pytest.raises(ValueError, match="key must be a typed key"):
        learner.init(0, problem.params)
