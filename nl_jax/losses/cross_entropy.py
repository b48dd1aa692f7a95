"""Cross-entropies of logits, from optax, with shape checks."""

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.numerics import as_floating
from nl_jax.base import Array
from nl_jax.losses.summed import summed


def cross_entropy(outputs: Array, targets: Array) -> Array:
    """Cross-entropy −Σ_k p̄_k log softmax(outputs)_k, in nats, averaged over positions if there are several.

    Args:
      outputs: logits, shape [batch, …, classes], such as [batch, classes] or [batch, sequence, vocabulary].
      targets: class labels, integers of shape [batch, …] in 0 … classes − 1 (a label outside gives NaN),
        or class probabilities, floats of shape [batch, …, classes].

    Returns:
      Losses, shape [batch], each the mean over an example's positions. The derivative by the logits is
      (softmax(outputs) − p̄) / positions (for probabilities that sum to 1).

    Raises:
      ValueError: if the shapes fit neither form.

    >>> import jax.numpy as jnp
    >>> cross_entropy(jnp.zeros([2, 4]), jnp.array([0, 3]))
    Array([1.3862944, 1.3862944], dtype=float32)
    """
    outputs, targets = as_floating(jnp.asarray(outputs)), jnp.asarray(targets)
    if outputs.ndim >= 2 and targets.shape == outputs.shape and jnp.issubdtype(targets.dtype, jnp.floating):
        return _of_probabilities(outputs, targets)
    if outputs.ndim >= 2 and targets.shape == outputs.shape[:-1] and jnp.issubdtype(targets.dtype, jnp.integer):
        return _of_labels(outputs, targets)
    raise ValueError(
        f"cross_entropy takes logits of shape [batch, …, classes] with integer labels of shape [batch, …] or "
        f"floating probabilities of shape [batch, …, classes]; got outputs {outputs.dtype}{list(outputs.shape)} "
        f"and targets {targets.dtype}{list(targets.shape)}{_remedy(outputs, targets)}"
    )


def _remedy(outputs: Array, targets: Array) -> str:
    whole = jnp.issubdtype(targets.dtype, jnp.integer)
    if outputs.ndim < 2:
        return ": add a batch axis, outputs[None] and targets[None]"
    if targets.shape == outputs.shape:
        return ": make probabilities floating, targets.astype(outputs.dtype)"
    if targets.shape == outputs.shape[:-1]:
        return ": make labels integers, targets.astype('int32')"
    if whole and targets.shape == (*outputs.shape[:-1], 1):
        return ": drop the last axis of the labels, targets[..., 0]"
    return ""


# Compiled functions of their own: JAX traces and differentiates them once for all programs with outputs of one shape.
@jax.jit
def _of_probabilities(outputs: Array, targets: Array) -> Array:
    return _mean_of_positions(optax.losses.softmax_cross_entropy(outputs, targets))


@jax.jit
def _of_labels(outputs: Array, labels: Array) -> Array:
    labels = labels.astype(jnp.int32)  # in 8 bits, labels cannot be compared to 256 classes
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, labels)
    known = (labels >= 0) & (labels < outputs.shape[-1])
    return _mean_of_positions(jnp.where(known, losses, jnp.nan))  # a gather would silently clip the label


def _mean_of_positions(losses: Array) -> Array:
    return jnp.mean(losses, axis=tuple(range(1, losses.ndim)))


def binary_cross_entropy(outputs: Array, targets: Array) -> Array:
    """Computes −Σ_i [p̄_i log σ(x_i) + (1 − p̄_i) log(1 − σ(x_i))], in nats: every unit is a separate binary output.

    Args:
      outputs: logits x, shape [batch, …].
      targets: probabilities p̄ in [0, 1], of the same shape.

    Returns:
      Losses, shape [batch]; the derivative by the logits is σ(x) − p̄.

    Raises:
      ValueError: if the shapes differ.

    >>> import jax.numpy as jnp
    >>> binary_cross_entropy(jnp.zeros([1, 2]), jnp.array([[0.0, 1.0]]))
    Array([1.3862944], dtype=float32)
    """
    return summed("binary_cross_entropy", optax.losses.sigmoid_binary_cross_entropy, outputs, targets)
