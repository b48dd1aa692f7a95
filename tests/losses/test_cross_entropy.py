import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nl_jax import losses


def test_cross_entropy_value_and_derivative(x64):
    outputs = jax.random.normal(jax.random.key(0), (4, 3))
    labels = jnp.array([0, 2, 1, 1])
    p = jax.nn.softmax(outputs)
    by_label = losses.cross_entropy(outputs, labels)
    np.testing.assert_allclose(by_label, -np.log(p[np.arange(4), labels]), rtol=1e-12)
    one_hot = jax.nn.one_hot(labels, 3)
    np.testing.assert_allclose(losses.cross_entropy(outputs, one_hot), by_label, rtol=1e-12)
    derivative = jax.grad(lambda o: losses.cross_entropy(o, labels).sum())(outputs)
    np.testing.assert_allclose(derivative, p - one_hot, rtol=1e-12, atol=1e-14)
    check_grads(lambda o: losses.cross_entropy(o, labels), (outputs,), order=2)


def test_cross_entropy_of_large_logits_is_finite():
    np.testing.assert_allclose(losses.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([0])), [0.0])


def test_cross_entropy_of_sequences_is_the_mean_of_positions(x64):
    outputs = jax.random.normal(jax.random.key(0), (4, 5, 3))
    labels = jax.random.randint(jax.random.key(1), (4, 5), 0, 3)
    by_position = losses.cross_entropy(outputs.reshape(20, 3), labels.reshape(20)).reshape(4, 5)
    np.testing.assert_allclose(losses.cross_entropy(outputs, labels), by_position.mean(axis=1), rtol=1e-12)
    probabilities = jax.nn.one_hot(labels, 3)
    np.testing.assert_allclose(losses.cross_entropy(outputs, probabilities), by_position.mean(axis=1), rtol=1e-12)
    assert np.isnan(losses.cross_entropy(outputs, labels.at[1, 2].set(3))).tolist() == [False, True, False, False]


def test_a_label_out_of_range_is_not_clipped():
    assert np.isnan(losses.cross_entropy(jnp.zeros((3, 2)), jnp.array([0, 2, -1]))).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32, jnp.int64])
def test_labels_of_any_integer_type(dtype, x64):
    losses_ = losses.cross_entropy(jnp.zeros((2, 256)), jnp.array([0, 100], dtype))
    np.testing.assert_allclose(losses_, np.log(256))


def test_binary_cross_entropy_value_and_derivative(x64):
    logits = jnp.array([[-3.0, 0.5], [0.0, 40.0]])
    targets = jnp.array([[0.0, 0.3], [0.5, 1.0]])
    p = 1 / (1 + np.exp(-logits))
    value = losses.binary_cross_entropy(logits, targets)
    expected = -np.log(1 - p[0, 0]) - 0.3 * np.log(p[0, 1]) - 0.7 * np.log(1 - p[0, 1])
    np.testing.assert_allclose(value, [expected, np.log(2)], rtol=1e-12)
    derivative = jax.grad(lambda o: losses.binary_cross_entropy(o, targets).sum())(logits)
    np.testing.assert_allclose(derivative, p - targets, rtol=1e-12, atol=1e-15)


def test_binary_cross_entropy_of_large_logits_is_finite():
    np.testing.assert_allclose(losses.binary_cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[1.0, 1.0]])), [1e4])


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (jnp.zeros((2, 3)), jnp.zeros(2)),  # floating labels
        (jnp.zeros((2, 3)), jnp.zeros(3, int)),
        (jnp.zeros((2, 3)), jnp.zeros((2, 3), int)),
        (jnp.zeros(3), jnp.zeros(3, int)),
    ],
)
def test_cross_entropy_says_what_fits(outputs, targets):
    with pytest.raises(
        ValueError, match=r"cross_entropy takes logits of shape \[batch, …, classes\] with integer labels"
    ):
        losses.cross_entropy(outputs, targets)
