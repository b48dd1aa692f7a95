"""Losses: `loss(outputs, targets) -> [batch]`, one value per example, never averaged.

Losses optax has are optax's; a loss here says how they act on a batch of examples and checks shapes.
"""

import jax.numpy as jnp
import optax

from nl_jax.base import Array


def cross_entropy(outputs: Array, targets: Array) -> Array:
    """−Σ_k p̄_k log softmax(outputs)_k, in nats.

    Args:
      outputs: logits, shape [batch, classes].
      targets: class labels, integers of shape [batch] in 0 … classes − 1 (a label outside gives NaN),
        or class probabilities, floats of shape [batch, classes].

    Returns:
      Losses, shape [batch]; the derivative by the logits is softmax(outputs) − p̄ (for probabilities
      that sum to 1).

    Raises:
      ValueError: if the shapes fit neither form.

    >>> import jax.numpy as jnp
    >>> cross_entropy(jnp.zeros([2, 4]), jnp.array([0, 3]))
    Array([1.3862944, 1.3862944], dtype=float32)
    """
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.ndim == 2 and targets.shape == outputs.shape and jnp.issubdtype(targets.dtype, jnp.floating):
        return optax.losses.softmax_cross_entropy(outputs, targets)
    if outputs.ndim == 2 and targets.shape == outputs.shape[:1] and jnp.issubdtype(targets.dtype, jnp.integer):
        targets = targets.astype(jnp.int32)  # 256 classes are more than a byte can be compared to
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, targets)
        known = (targets >= 0) & (targets < outputs.shape[1])
        return jnp.where(known, losses, jnp.nan)  # a gather would clip the label without a word
    raise ValueError(
        f"cross_entropy takes logits of shape [batch, classes] with integer labels of shape [batch] or "
        f"floating probabilities of shape [batch, classes]; got outputs {outputs.dtype}{list(outputs.shape)} "
        f"and targets {targets.dtype}{list(targets.shape)}"
    )


def half_squared_error(outputs: Array, targets: Array) -> Array:
    """½ ‖x − x̄‖² over all but the first axis (seed 000, weight perturbation; seed 001 §1).

    Args:
      outputs: x, shape [batch, …].
      targets: x̄, of the same shape.

    Returns:
      Losses, shape [batch]; the derivative by the outputs is x − x̄.

    Raises:
      ValueError: if the shapes differ.

    >>> import jax.numpy as jnp
    >>> half_squared_error(jnp.ones([1, 2]), jnp.zeros([1, 2]))
    Array([1.], dtype=float32)
    """
    if jnp.shape(outputs) != jnp.shape(targets):
        raise ValueError(
            f"half_squared_error compares arrays of one shape; got outputs {jnp.shape(outputs)} and targets "
            f"{jnp.shape(targets)} (labels need jax.nn.one_hot first)"
        )
    losses = optax.losses.l2_loss(outputs, targets)
    return jnp.sum(losses, axis=tuple(range(1, losses.ndim)))
