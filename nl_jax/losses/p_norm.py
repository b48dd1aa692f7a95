"""Distance losses: powers of |x − x̄|."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.require import positive_number
from nl_jax.base import Array
from nl_jax.losses.summed import summed


def half_squared_error(outputs: Array, targets: Array) -> Array:
    """Half squared error ½ ‖x − x̄‖² over all but the first axis (seed 000, weight perturbation; seed 001 §1).

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
    return summed("half_squared_error", optax.losses.l2_loss, outputs, targets)


def p_norm(p: float) -> Callable[[Array, Array], Array]:
    """Returns the loss ℓ_p = (1/p) Σ_i |x_i − x̄_i|^p over all but the first axis (seed 003 eq. 14).

    The derivative by the outputs is sgn(x − x̄) |x − x̄|^{p−1}, which is 0 at x = x̄, also for p = 1. The
    second derivative, (p − 1) |x − x̄|^{p−2}, is infinite there for 1 < p < 2; it is set to 0.

    Args:
      p: at least 1; 2 is `half_squared_error`.

    Returns:
      `loss(outputs, targets) -> losses`: outputs and targets of one shape [batch, …], losses [batch]. It raises
      ValueError if the shapes differ.

    Raises:
      ValueError: if p is not as described.

    >>> import jax.numpy as jnp
    >>> p_norm(1)(jnp.array([[1.0, -2.0]]), jnp.zeros([1, 2]))
    Array([3.], dtype=float32)
    """
    p = positive_number("p", p)
    if p < 1:
        raise ValueError(f"p must be at least 1, below which |x|^p belongs to no norm, got {p!r}")

    def loss(outputs: Array, targets: Array) -> Array:
        return summed(f"p_norm({p:g})", lambda x, target: _even(x - target, p) / p, outputs, targets)

    return loss


# These powers are each other's derivatives, to any order. With autodiff, the second derivative of |d|^p at d = 0
# would be 0 even for p = 2, and NaN for p < 2. A slope of 0 is not computed as a product: |d|^{−1} may overflow.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _even(d: Array, q: float) -> Array:
    """|d|^q, and 0 at d = 0 where q < 0."""
    power = jnp.abs(d) ** q
    return power if q >= 0 else jnp.where(d == 0, 0, power)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _odd(d: Array, q: float) -> Array:
    """sgn(d) |d|^q."""
    return jnp.sign(d) * _even(d, q)


@_even.defjvp
def _even_tangent(q: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (d,) = primals
    slope = q * _odd(d, q - 1) if q else jnp.zeros_like(d)
    return _even(d, q), slope * tangents[0]


@_odd.defjvp
def _odd_tangent(q: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (d,) = primals
    slope = q * _even(d, q - 1) if q else jnp.zeros_like(d)
    return _odd(d, q), slope * tangents[0]
