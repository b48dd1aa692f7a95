"""Kullback–Leibler divergences of outputs from targets, defined at every edge of their domain.

The domain is outputs and targets of at least 0, and 0 log 0 = 0. Outside the domain, and where an output is above 0
but its target is 0, a loss is +∞. Where an argument is NaN, the loss is NaN. Derivatives are finite everywhere, and at
negative outputs they point back into the domain. Arguments of log are at least the dtype's smallest normal number.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr

from nl_jax.base import Array
from nl_jax.losses.summed import summed


def kullback_leibler(outputs: Array, targets: Array) -> Array:
    """Computes ℓ = Σ_i x_i log(x_i / x̄_i) over all but the first axis, in nats (seed 003 eq. 15).

    It is a divergence if outputs and targets each sum to 1, which is not checked. For unconstrained outputs, ℓ is
    least at x = x̄ / e. `normalised_kullback_leibler` divides the outputs by their sum.

    Args:
      outputs: x, at least 0, shape [batch, …]; a negative one makes the loss +∞.
      targets: x̄, at least 0, of the same shape; a negative one makes the loss +∞, and so does a target
        of 0 with an output above 0. Otherwise an output of 0 adds nothing.

    Returns:
      Losses, shape [batch]. The derivative by the outputs is log(x / x̄) + 1, computed as
      log(max(x, tiny)) − log(max(x̄, tiny)) + 1, where tiny is the dtype's smallest normal number. Where x < 0,
      2 is subtracted. The derivative is always finite, and always negative for x < 0, even for a target of 0.
      Second derivatives are 1/x inside the domain and 0 outside.

    Raises:
      ValueError: if the shapes differ.

    >>> import jax.numpy as jnp
    >>> kullback_leibler(jnp.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]), jnp.array([[0.5, 0.5]] * 2 + [[1.0, 0.0]]))
    Array([0.       , 0.6931472,       inf], dtype=float32)
    """
    return summed("kullback_leibler", _relative_entropy, outputs, targets)


def binary_kullback_leibler(outputs: Array, targets: Array) -> Array:
    """Computes Σ x log(x/a) + (1 − x) log((1 − x)/(1 − a)) over all but the first axis, in nats (seed 003 eq. 17).

    Each unit is a separate probability. The least loss is 0, at x = a.

    Args:
      outputs: x in [0, 1], shape [batch, …]; one outside makes the loss +∞.
      targets: a in [0, 1], of the same shape; one outside makes the loss +∞, and so does a target of 0 or 1
        with any other output.

    Returns:
      Losses, shape [batch]. The derivative by the outputs is log(x/a) − log((1 − x)/(1 − a)), and the second
      derivative is 1/x + 1/(1 − x) (seed 003 eq. 18). At the edges they are as for `kullback_leibler`.

    Raises:
      ValueError: if the shapes differ.

    >>> import jax.numpy as jnp
    >>> binary_kullback_leibler(jnp.array([[0.3], [1.0], [1.5]]), jnp.array([[0.3], [0.5], [0.5]]))
    Array([0.       , 0.6931472,       inf], dtype=float32)
    """

    def terms(x: Array, a: Array) -> Array:
        return _relative_entropy(x, a) + _relative_entropy(1 - x, 1 - a)

    return summed("binary_kullback_leibler", terms, outputs, targets)


@jax.custom_jvp
def _relative_entropy(x: Array, target: Array) -> Array:
    known = ~(jnp.isnan(x) | jnp.isnan(target))  # rel_entr treats NaN as outside the domain
    return jnp.where(known, rel_entr(x, target), jnp.nan)


@_relative_entropy.defjvp
def _tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, target = primals
    limits = jnp.finfo(x.dtype)
    above = jnp.maximum(target, limits.tiny)
    # Two logarithms, because the quotient may overflow.
    by_output = jnp.log(jnp.maximum(x, limits.tiny)) - jnp.log(above) + jnp.where(x < 0, -1, 1)
    by_target = -jnp.minimum(jnp.maximum(x, 0) / above, limits.max)
    return _relative_entropy(x, target), by_output * tangents[0] + by_target * tangents[1]
