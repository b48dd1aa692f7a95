"""The delta rule and its extension to two layers, for sigmoid units under ½|ŷ − y|² (seed 001 §1–2).

All gradients are for one example; use `jax.vmap` for many. Biases are weights from a constant x_0 = 1.
"""

import jax
import jax.numpy as jnp


def delta(output: jax.Array, target: jax.Array) -> jax.Array:
    """Computes δ = (ŷ − y) ŷ (1 − ŷ), the derivative of the loss by a sigmoid unit's pre-activation, elementwise."""
    return (output - target) * output * (1 - output)


def gradient(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes ∇f_i(w) = x δᵀ for one layer ŷ = σ(wᵀx) (seed 001 §1).

    Args:
      w: weights, [D] for one unit, or [D, q] for q units.
      x: one input, [D].
      y: its target, a scalar or [q].

    Returns:
      The gradient, shaped as w.

    Raises:
      ValueError: if x or y is of another shape.

    >>> import jax.numpy as jnp
    >>> gradient(jnp.zeros(2), jnp.array([1.0, 4.0]), jnp.array(1.0))
    Array([-0.125, -0.5  ], dtype=float32)
    """
    if x.shape != w.shape[:1] or y.shape != w.shape[1:]:
        raise ValueError(
            f"x must be of shape {list(w.shape[:1])} and y of {list(w.shape[1:])}, one example for w of "
            f"{list(w.shape)}; got {list(x.shape)} and {list(y.shape)}: for many, jax.vmap(gradient, (None, 0, 0))"
        )
    return jnp.multiply.outer(x, delta(jax.nn.sigmoid(x @ w), y))


def two_layer_gradients(v: jax.Array, w: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes ∂f_i/∂v = h δᵀ and ∂f_i/∂w = x γᵀ for two layers ŷ = σ(vᵀh), h = (1, σ(wᵀx)) (seed 001 §2).

        δ_k = (ŷ_k − y_k) ŷ_k (1 − ŷ_k),  γ_m = Σ_k δ_k v_km h_m (1 − h_m)

    The constant h_0 = 1 has no inputs, so w has a column only for each of the other M hidden units.

    Args:
      v: weights of the upper layer, [M + 1, q], those of the constant first.
      w: weights of the lower layer, [D, M].
      x: one input, [D].
      y: its target, [q].

    Returns:
      (∂f/∂v, ∂f/∂w), shaped as v and w.
    """
    hidden = jax.nn.sigmoid(x @ w)
    h = jnp.concatenate([jnp.ones_like(hidden[:1]), hidden])
    deltas = delta(jax.nn.sigmoid(h @ v), y)
    gammas = v[1:] @ deltas * hidden * (1 - hidden)
    return jnp.multiply.outer(h, deltas), jnp.multiply.outer(x, gammas)
