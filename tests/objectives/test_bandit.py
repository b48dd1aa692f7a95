import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl

NETWORK = nl.mlp([3, 4, 3], activation=nl.activations.tanh())
PARAMS = NETWORK.init(jax.random.key(0))
INPUTS, LABELS = jax.random.normal(jax.random.key(1), (5, 3)), jnp.array([0, 1, 2, 0, 1])
KEY = jax.random.key(2)


def told_whether_right(action, label):
    return action == label


def told_how_likely(outputs, label):
    return jnp.take_along_axis(jax.nn.softmax(outputs), label[:, None], axis=1)[:, 0]


def test_the_loss_is_minus_the_reward():
    outputs = NETWORK.apply(PARAMS, INPUTS)
    losses = nl.bandit(NETWORK.apply, told_whether_right)(PARAMS, (INPUTS, LABELS))
    np.testing.assert_array_equal(losses, -(outputs.argmax(axis=1) == LABELS).astype(jnp.float32))
    graded = nl.bandit(NETWORK.apply, told_how_likely, act=nl.objectives.graded)(PARAMS, (INPUTS, LABELS))
    np.testing.assert_allclose(graded, -told_how_likely(outputs, LABELS))


@pytest.mark.parametrize("act", [nl.objectives.greedy, nl.objectives.graded])
def test_to_differentiate_is_refused(act):
    """Also where argmax would make of it a silent 0."""
    reward = told_whether_right if act is nl.objectives.greedy else told_how_likely
    objective = nl.bandit(NETWORK.apply, reward, act=act)
    for estimator in (nl.backprop(objective), nl.forward_gradient(objective), nl.backprop_recursion(objective)):
        with pytest.raises(ValueError, match="a reward has no derivative"):
            jax.eval_shape(estimator.estimate, KEY, (), PARAMS, (INPUTS, LABELS))


def test_parameters_that_need_the_rewards_derivative_are_refused():
    def scaled(params, x, propagate=nl.propagation.feedforward):
        return params["scale"] * NETWORK.apply(params["network"], x, propagate=propagate)

    objective = nl.bandit(scaled, told_how_likely, act=nl.objectives.graded)
    params = {"scale": jnp.ones(()), "network": PARAMS}
    with pytest.raises(ValueError, match="use no parameter outside the layers"):
        jax.eval_shape(nl.node_perturbation(objective).estimate, KEY, (), params, (INPUTS, LABELS))
    jax.eval_shape(nl.weight_perturbation(objective).estimate, KEY, (), params, (INPUTS, LABELS))


EVALUATING = {
    "weights": lambda objective: nl.weight_perturbation(objective, sigma=1.0, num_samples=8),
    "nodes": lambda objective: nl.node_perturbation(objective, sigma=1.0, num_samples=8),
    "reinforce": lambda objective: nl.reinforce(
        objective, units={"output": nl.units.categorical(), "*": nl.units.gaussian(sigma=1.0)}, num_samples=8
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATING)
def test_the_label_is_known_by_the_reward_alone(name):
    """Labels under other names, and an environment that knows these: the same rewards, the same estimate to the bit."""
    names = jnp.array([2, 0, 1])
    plain = nl.bandit(NETWORK.apply, told_whether_right)
    renamed = nl.bandit(NETWORK.apply, lambda action, label: names[action] == label)
    estimates = [
        jax.jit(EVALUATING[name](objective).estimate)(KEY, (), PARAMS, (INPUTS, labels))[0]
        for objective, labels in ((plain, LABELS), (renamed, names[LABELS]))
    ]
    jax.tree.map(np.testing.assert_array_equal, *estimates)
    assert np.abs(estimates[0]["hidden1"]["weight"]).max() > 0


@pytest.mark.parametrize(
    "reward", [lambda action, label: jnp.mean(action == label), lambda action, label: (action == label)[:1]]
)
def test_a_reward_is_one_number_per_example(reward):
    with pytest.raises(ValueError, match=r"reward must return one value per example, shape \[batch\]; got shape"):
        nl.bandit(NETWORK.apply, reward)(PARAMS, (INPUTS, LABELS))


def test_what_it_is_given_is_checked():
    with pytest.raises(ValueError, match="reward must take 2 arguments"):
        nl.bandit(NETWORK.apply, lambda action: action)
    with pytest.raises(ValueError, match="act must take one argument"):
        nl.bandit(NETWORK.apply, told_whether_right, act=lambda: None)
    with pytest.raises(ValueError, match=r"batch must be a pair \(inputs, context\), got"):
        nl.bandit(NETWORK.apply, told_whether_right)(PARAMS, INPUTS)
