import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax import losses


def test_cross_entropy_value_and_derivative(x64):
    outputs = np.random.default_rng(0).normal(size=(4, 3))
    labels, one_hot = np.array([0, 2, 1, 1]), np.eye(3)[[0, 2, 1, 1]]
    p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    by_label = losses.cross_entropy(outputs, labels)
    np.testing.assert_allclose(by_label, -np.log(p[np.arange(4), labels]), rtol=1e-12)
    np.testing.assert_allclose(losses.cross_entropy(outputs, one_hot), by_label, rtol=1e-12)
    derivative = jax.jit(jax.grad(lambda o: losses.cross_entropy(o, labels).sum()))(outputs)
    np.testing.assert_allclose(derivative, p - one_hot, rtol=1e-12, atol=1e-14)
    curvature = jax.jit(jax.jacfwd(jax.jacrev(lambda o: losses.cross_entropy(o, labels).sum())))(outputs)
    for n in range(4):  # ∂²/∂o_i ∂o_j = p_i (δ_ij − p_j), within an example
        np.testing.assert_allclose(curvature[n, :, n], np.diag(p[n]) - np.outer(p[n], p[n]), rtol=1e-12, atol=1e-14)


def test_cross_entropy_of_whole_logits():
    np.testing.assert_allclose(losses.cross_entropy(np.array([[3, 3]], np.uint8), np.array([0])), np.log(2), rtol=1e-6)


def test_cross_entropy_of_large_logits_is_finite():
    np.testing.assert_allclose(losses.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([0])), [0.0])


def test_cross_entropy_of_sequences_is_the_mean_of_positions(x64):
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(4, 5, 3)), rng.integers(0, 3, (4, 5))
    by_position = np.asarray(losses.cross_entropy(outputs.reshape(20, 3), labels.reshape(20))).reshape(4, 5)
    np.testing.assert_allclose(losses.cross_entropy(outputs, labels), by_position.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(losses.cross_entropy(outputs, np.eye(3)[labels]), by_position.mean(axis=1), rtol=1e-12)
    labels[1, 2] = 3
    assert np.isnan(losses.cross_entropy(outputs, labels)).tolist() == [False, True, False, False]


def test_a_label_out_of_range_is_not_clipped():
    assert np.isnan(losses.cross_entropy(jnp.zeros((3, 2)), jnp.array([0, 2, -1]))).tolist() == [False, True, True]


def test_labels_of_any_integer_type(x64):
    labels = [np.array([0, 100], dtype) for dtype in (np.uint8, np.int8, np.int32, np.int64)]
    run = jax.jit(lambda outputs, labels: [losses.cross_entropy(outputs, of_dtype) for of_dtype in labels])
    np.testing.assert_allclose(run(np.zeros((2, 256)), labels), np.log(256))


def test_binary_cross_entropy_value_and_derivative(x64):
    logits = np.array([[-3.0, 0.5], [0.0, 40.0]])
    targets = np.array([[0.0, 0.3], [0.5, 1.0]])
    p = 1 / (1 + np.exp(-logits))
    loss = losses.binary_cross_entropy
    both = jax.jit(lambda o, t: (loss(o, t), jax.grad(lambda o: loss(o, t).sum())(o)))
    value, derivative = both(logits, targets)
    expected = -np.log(1 - p[0, 0]) - 0.3 * np.log(p[0, 1]) - 0.7 * np.log(1 - p[0, 1])
    np.testing.assert_allclose(value, [expected, np.log(2)], rtol=1e-12)
    np.testing.assert_allclose(derivative, p - targets, rtol=1e-12, atol=1e-15)


def test_binary_cross_entropy_of_large_logits_is_finite():
    np.testing.assert_allclose(losses.binary_cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[1.0, 1.0]])), [1e4])


@pytest.mark.parametrize(
    ("outputs", "targets", "remedy"),
    [
        (jnp.zeros((2, 3)), jnp.zeros(2), r": make labels integers, targets\.astype\('int32'\)"),
        (jnp.zeros((2, 3)), jnp.zeros((2, 1), int), r": drop the last axis of the labels, targets\[\.\.\., 0\]"),
        (jnp.zeros((2, 3)), jnp.zeros(3, int), r"int\d+\[3\]"),
        (
            jnp.zeros((2, 3)),
            jnp.zeros((2, 3), int),
            r": make probabilities floating, targets\.astype\(outputs\.dtype\)",
        ),
        (jnp.zeros(3), jnp.zeros(3, int), r": add a batch axis, outputs\[None\] and targets\[None\]"),
    ],
)
def test_cross_entropy_says_what_fits(outputs, targets, remedy):
    with pytest.raises(
        ValueError, match=rf"cross_entropy takes logits of shape \[batch, …, classes\] with integer labels.*{remedy}$"
    ):
        losses.cross_entropy(outputs, targets)
