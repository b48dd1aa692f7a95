"""Losses of outputs divided by their sum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import as_floating, wide_dtype
from nl_jax._core.require import takes
from nl_jax.base import Array
from nl_jax.losses.kullback_leibler import kullback_leibler


def normalised(loss: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Normalises a loss: L(x) = ℓ(x/X), X = Σ_i x_i over all but the first axis (seed 003 eq. 13).

    The derivative by the outputs is (∂_i ℓ − C)/X with C = Σ_j x_j ∂_j ℓ / X, so that Σ_i x_i ∂_i L = 0: L does
    not depend on the length and sign of x, so no step is taken along x. Where X = 0 the shares are undefined: the
    loss is +∞ and its derivative 0.

    Args:
      loss: ℓ, `loss(outputs, targets) -> [batch]`; it receives the targets unchanged.

    Returns:
      L, with the signature of ℓ.

    Raises:
      ValueError: if loss does not take two arguments. When called, L also raises the errors of ℓ.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> normalised(nl.losses.half_squared_error)(jnp.array([[2.0, 2.0]]), jnp.array([[0.5, 0.5]]))
    Array([0.], dtype=float32)
    """
    takes("loss", loss, 2, "a function of outputs and targets; some are made by a call, nl.losses.p_norm(2)")

    def normalised_loss(outputs: Array, targets: Array) -> Array:
        outputs = as_floating(jnp.asarray(outputs))
        dtype, others = wide_dtype(outputs.dtype), tuple(range(1, outputs.ndim))
        x = outputs.astype(dtype)
        # L does not depend on the length of x: long x are divided by their largest output, to keep X and 1/X² in range.
        # They are divided twice by its root, because the inverse of the dtype's largest number is not a normal number.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=others, keepdims=True))
        shorter = jnp.where(largest > 1, jax.lax.rsqrt(largest), 1).astype(dtype)
        x = x * shorter * shorter
        total = jnp.sum(x, axis=others, keepdims=True)
        empty = total == 0
        # Where X = 0 the shares are constants, so no derivative comes back through `where`, whatever ℓ does.
        shares = jnp.where(empty, 1, x / jnp.where(empty, 1, total))
        losses = loss(shares.astype(outputs.dtype), targets)
        return jnp.where(empty.reshape(losses.shape), jnp.inf, losses)

    return normalised_loss


def normalised_kullback_leibler(outputs: Array, targets: Array) -> Array:
    """Computes L = (1/X) Σ_i x_i log(x_i / (X x̄_i)), X = Σ_i x_i, in nats (seed 003 eq. 16).

    This is `normalised(kullback_leibler)`: the divergence of the shares x/X from the targets. If the targets sum to 1,
    it is least at x/X = x̄.

    Args:
      outputs: x, shape [batch, …]; shares x/X below 0 make the loss +∞, and so does X = 0.
      targets: x̄, at least 0, of the same shape; edges as for `kullback_leibler`.

    Returns:
      Losses, shape [batch]. The derivative by the outputs is (log(x_i / (X x̄_i)) − L)/X.

    Raises:
      ValueError: if the shapes differ.

    >>> import jax.numpy as jnp
    >>> normalised_kullback_leibler(jnp.array([[2.0, 2.0], [3.0, 0.0]]), jnp.full([2, 2], 0.5))
    Array([0.       , 0.6931472], dtype=float32)
    """
    return normalised(kullback_leibler)(outputs, targets)
