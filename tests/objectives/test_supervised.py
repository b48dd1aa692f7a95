import inspect

import jax.numpy as jnp
import pytest

import nl_jax as nl
from tests import problems


def test_an_objective_takes_propagate_if_its_forward_does():
    layered = problems.chain().objective
    assert list(inspect.signature(layered).parameters) == ["params", "batch", "propagate"]
    layerless = nl.supervised(lambda params, x, **options: x @ params, nl.losses.half_squared_error)
    assert list(inspect.signature(layerless).parameters) == ["params", "batch"]


@pytest.mark.parametrize("loss", [lambda y, t: jnp.mean(y), lambda y, t: y, lambda y, t: y[:1, 0]])
def test_losses_must_be_per_example(loss):
    objective = nl.supervised(lambda params, x: x @ params, loss)
    with pytest.raises(ValueError, match=r"loss must return one value per example, shape \[batch\]; got shape"):
        objective(jnp.ones((3, 2)), (jnp.ones((4, 3)), jnp.zeros(4)))


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (jnp.ones((2, 3)), r"float32\[2, 3\]: wrap the objective"),
        ({"image": jnp.ones(3), "name": "a"}, r"'name': 'str'}: wrap the objective"),
        ([(jnp.ones(3), jnp.ones(1))] * 3, r"float32\[1\]'\)\]: stack the batches, or pass iter\(batches\)"),
    ],
)
def test_a_batch_is_a_pair(batch, said):
    objective = nl.supervised(lambda params, x: x @ params, nl.losses.half_squared_error)
    with pytest.raises(ValueError, match=rf"batch must be a pair \(inputs, targets\), got .*{said}"):
        objective(jnp.ones((3, 2)), batch)


def test_outputs_and_targets_have_equally_many_examples():
    objective = nl.supervised(lambda w, x: x @ w, lambda outputs, targets: outputs[:, 0])
    with pytest.raises(ValueError, match="outputs and targets must have equally many examples"):
        objective(jnp.ones((3, 1)), (jnp.ones((2, 3)), jnp.zeros(4)))


def test_targets_may_be_any_tree():
    objective = nl.supervised(lambda w, x: x * w, lambda y, t: (y - t["a"]) ** 2 + t["b"])
    losses = objective(jnp.float32(2.0), (jnp.ones(3), {"a": jnp.ones(3), "b": jnp.ones(3)}))
    assert losses.tolist() == [2.0, 2.0, 2.0]


def test_a_model_is_refused_for_its_apply():
    with pytest.raises(ValueError, match=r"got Network: pass its \.apply"):
        nl.supervised(nl.mlp([2, 1], activation=nl.activations.tanh()), nl.losses.half_squared_error)


def test_a_loss_that_averages_is_told_not_to():
    objective = nl.supervised(lambda w, x: x @ w, lambda outputs, targets: jnp.mean((outputs - targets) ** 2))
    with pytest.raises(ValueError, match=r"got shape \(\) .*: do not average over the batch"):
        objective(jnp.ones((3, 1)), (jnp.ones((2, 3)), jnp.zeros((2, 1))))
