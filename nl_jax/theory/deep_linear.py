"""Learning dynamics of deep linear networks ŷ = W_L ⋯ W_1 x (seed 000, deep linear networks; Saxe et al. 2014).

W_l is [units_l, units_{l−1}] as in the seed, the transpose of the weight of `nl.connections.dense`. For two layers W_1
is the seed's W21 and W_2 its W32. The seed's loss is L = (1/N) Σ_n ‖y_n − W_L ⋯ W_1 x_n‖². Time t is in the units of τ;
`time_constant` relates it to steps of gradient descent.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def correlations(x: Array, y: Array) -> tuple[Array, Array]:
    """Computes Σ11 = (1/N) Σ_n x_n x_nᵀ and Σ31 = (1/N) Σ_n y_n x_nᵀ (seed 000).

    Args:
      x: inputs, [N, inputs].
      y: targets, [N, outputs].

    Returns:
      (Σ11, Σ31), [inputs, inputs] and [outputs, inputs].

    Raises:
      ValueError: if the shapes are not as described.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"x must be of shape [N, inputs] and y [N, outputs], got {list(x.shape)} and {list(y.shape)}")
    return x.T @ x / len(x), y.T @ x / len(x)


def two_layer_gradients(W32: Array, W21: Array, Sigma11: Array, Sigma31: Array) -> tuple[Array, Array]:
    """Computes both gradients of the seed's loss (seed 000).

        −∂L/∂W32 = 2 (Σ31 − W32 W21 Σ11) W21ᵀ,  −∂L/∂W21 = 2 W32ᵀ (Σ31 − W32 W21 Σ11)

    In the second equation the seed has Σ32ᵀ, a typo for W32ᵀ.

    Returns:
      (∂L/∂W32, ∂L/∂W21), shaped as W32 and W21.
    """
    error = Sigma31 - W32 @ W21 @ Sigma11
    return -2 * error @ W21.T, -2 * W32.T @ error


def flow(weights: Sequence[Array], Sigma11: Array, Sigma31: Array) -> tuple[Array, ...]:
    """Computes the gradient flow of networks of any depth: τ dW_l/dt = −½ ∂L/∂W_l (Saxe et al. 2014).

        τ dW_l/dt = (W_L ⋯ W_{l+1})ᵀ (Σ31 − W_L ⋯ W_1 Σ11) (W_{l−1} ⋯ W_1)ᵀ

    Args:
      weights: W_1 … W_L.
      Sigma11, Sigma31: correlations of the data, as from `correlations`.

    Returns:
      τ dW_1/dt … τ dW_L/dt.
    """
    below = [jnp.eye(weights[0].shape[1], dtype=weights[0].dtype)]
    above = [jnp.eye(weights[-1].shape[0], dtype=weights[-1].dtype)]
    for low, high in zip(weights[:-1], weights[:0:-1], strict=True):
        below.append(low @ below[-1])
        above.append(above[-1] @ high)
    error = Sigma31 - weights[-1] @ below[-1] @ Sigma11
    return tuple(up.T @ error @ down.T for up, down in zip(reversed(above), below, strict=True))


def time_constant(rate: float) -> float:
    """The time constant in steps, τ = 1/(2η): W ← W − η ∂L/∂W is an Euler step of length 1 along `flow`.

    The factor 2 comes from the seed's loss. For `nl.losses.half_squared_error`, averaged over examples, τ = 1/η.

    >>> time_constant(0.05)
    10.0
    """
    return 1 / (2 * rate)


def modes(Sigma31: Array) -> tuple[Array, Array, Array]:
    """Computes the modes Σ31 = U diag(s) Vᵀ, strongest first; if Σ11 = I they are learned independently.

    Returns:
      (U, s, V), [outputs, modes], [modes] and [inputs, modes], with min(outputs, inputs) modes.
    """
    U, s, Vt = jnp.linalg.svd(Sigma31, full_matrices=False)
    return U, s, Vt.T


def strengths(weights: Sequence[Array], U: Array, V: Array) -> Array:
    """Computes the learned strength of each mode, u_α = u_αᵀ W_L ⋯ W_1 v_α; learning takes it to s_α.

    For balanced weights and whitened inputs, L = Σ_α (s_α − u_α)² + the error that no linear network can remove.

    Args:
      weights: W_1 … W_L.
      U, V: as from `modes`.

    Returns:
      [modes].
    """
    return jnp.sum(U * functools.reduce(lambda product, W: W @ product, weights, V), axis=0)


def balanced_weights(key: Array, Sigma31: Array, start: float, hidden: Sequence[int]) -> tuple[Array, ...]:
    """Draws weights with exact mode solutions: W_{l+1}ᵀ W_{l+1} = W_l W_lᵀ and W_L ⋯ W_1 = u₀ U Vᵀ.

    W_l = u₀^{1/L} R_l R_{l−1}ᵀ with R_0 = V, R_L = U and random orthonormal columns in the R_l between. With Σ11 = I
    the flow preserves the balance and the modes, and each strength evolves independently.

    Args:
      key: typed key for the R_l.
      Sigma31: [outputs, inputs].
      start: u₀, the initial strength of every mode, above 0.
      hidden: units of each hidden layer, at least the number of modes.

    Returns:
      W_1 … W_L, where L is the number of hidden layers plus 1.

    Raises:
      ValueError: if the start is not above 0 or a hidden layer is too narrow.
    """
    if not 0 < start < math.inf:
        raise ValueError(f"start must be a finite number above 0, got {start!r}")
    U, s, V = modes(Sigma31)
    if any(units < len(s) for units in hidden):
        raise ValueError(f"hidden layers must have at least {len(s)} units, one for each mode; got {list(hidden)}")
    keys = jax.random.split(key, len(hidden))
    between = [
        jax.random.orthogonal(k, units, dtype=V.dtype)[:, : len(s)] for k, units in zip(keys, hidden, strict=True)
    ]
    factors = [V, *between, U]
    each = start ** (1 / (len(factors) - 1))
    return tuple(each * high @ low.T for low, high in itertools.pairwise(factors))


def mode_velocity(u: ArrayLike, s: ArrayLike, depth: int) -> Array:
    """Computes the `flow` of one mode of balanced weights: τ du/dt = L u^{2−2/L} (s − u) (Saxe et al. 2014).

    It holds for Σ11 = I. The factor u^{2−2/L} makes weak modes of deep networks slow and causes plateaus of the loss.

    Args:
      u: strength, at least 0.
      s: the mode's strength in the data.
      depth: L, the number of weight layers.
    """
    u = jnp.asarray(u)
    return depth * u ** (2 - 2 / depth) * (s - u)


def mode(t: ArrayLike, s: ArrayLike, u0: ArrayLike, tau: float, depth: int = 2) -> Array:
    """The strength u(t) of a mode (Saxe et al. 2014).

    For two layers u(t) = s e^{2st/τ} / (e^{2st/τ} − 1 + s/u₀), for one s + (u₀ − s) e^{−t/τ}. For more layers
    `learning_time` is inverted by bisection to the last few bits; this is not differentiable.

    Args:
      t: time, at least 0.
      s: the mode's strength in the data, above 0.
      u0: u(0), above 0 and below s.
      tau: τ.
      depth: L, the number of weight layers.

    Returns:
      u(t), of the shape of t, s and u0, which are numbers or arrays of one shape.

    Raises:
      ValueError: if `depth` is not a whole number of at least 1.
    """
    _check_depth(depth)
    t, s, u0 = jnp.asarray(t), jnp.asarray(s), jnp.asarray(u0)
    if depth == 1:
        return s + (u0 - s) * jnp.exp(-t / tau)
    if depth == 2:  # numerator and denominator are divided by the exponential, so that any t is valid
        return s / (1 + (s / u0 - 1) * jnp.exp(-2 * s * t / tau))

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2  # of logarithms, so that weak strengths are as precise as strong ones
        early = learning_time(jnp.exp(middle), s, u0, tau, depth) < t
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    t, s, u0 = jnp.broadcast_arrays(t, s, u0)
    low, high = jnp.log(u0), jnp.log(s)
    low, high = jax.lax.fori_loop(0, jnp.finfo(low.dtype).nmant + 8, halve, (low, high))
    return jnp.exp((low + high) / 2)


def learning_time(u: ArrayLike, s: ArrayLike, u0: ArrayLike, tau: float, depth: int = 2) -> Array:
    """The time t at which a mode has moved from u₀ to u, in closed form for any depth.

    For two layers t = τ/(2s) ln[u (s − u₀) / (u₀ (s − u))] (Saxe et al. 2014). At any depth, with v = (u/s)^{1/L},

        t = τ s^{2/L − 2} [T(v) − T(v₀)],  T(v) = ∫ dv / (v^{L−1} (1 − v^L)) = P(v) − (1/L) Σ_k Re ω_k² ln(1 − v/ω_k)

    by partial fractions, ω_k = e^{2πik/L}; the pole at 0 gives P = 0, ln v or −v^{2−L}/(L − 2) for L = 1, 2 or more.
    The time grows as ln 1/u₀ for two layers and as u₀^{2/L − 1} for more.

    Args:
      u: strength, from u₀ to below s.
      s, u0, tau, depth: as in `mode`.

    Raises:
      ValueError: if `depth` is not a whole number of at least 1.
    """
    _check_depth(depth)
    u, s, u0 = jnp.asarray(u), jnp.asarray(s), jnp.asarray(u0)
    angles = [2 * math.pi * k / depth for k in range(depth)]

    def primitive(v: Array) -> Array:
        at_zero = 0 * v if depth == 1 else jnp.log(v) if depth == 2 else -(v ** (2 - depth)) / (depth - 2)
        return at_zero - sum(_real_log(v, angle) for angle in angles) / depth

    since, begun = (primitive((strength / s) ** (1 / depth)) for strength in (u, u0))
    return tau * s ** (2 / depth - 2) * (since - begun)


def _real_log(v: Array, angle: float) -> Array:
    """Computes Re ω² ln(1 − v/ω), ω = e^{i angle}, without complex numbers."""
    length = jnp.hypot(v - math.cos(angle), jnp.full_like(v, math.sin(angle)))
    turned = jnp.arctan2(v * math.sin(angle), 1 - v * math.cos(angle))
    return math.cos(2 * angle) * jnp.log(length) - math.sin(2 * angle) * turned


def _check_depth(depth: int) -> None:
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth must be a whole number of at least 1, layers of weights; got {depth!r}")
