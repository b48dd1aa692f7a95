"""Mean-field theory of wide random networks: sizes of axons and credit (Poole et al. 2016; Schoenholz et al. 2017).

Layers have many units, ν^k = W^k x^{k−1}, and independent weights with variance g over the number of inputs. Their
pre-activations are Gaussian with variance g q_{k−1}. With z ~ N(0, 1), the mean squares q_k of the axons (activity) and
d_k of the credit δ^k = f′(ν^k) W^{k+1}ᵀ δ^{k+1} are

    q_k = E f(√(g q_{k−1}) z)²,    d_k = g E f′(√(g q_{k−1}) z)² d_{k+1}

Both keep their size for linear units with g = 1 and for rectified linear units with g = 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.theory.ranges import in_range

_POINTS = 100  # of Gauss–Hermite quadrature; even, so that none lies on a kink at 0


class MeanSquares(NamedTuple):
    """Mean squares per unit in each layer.

    Attributes:
      inputs: q_{k−1} of the inputs of layer k = 1 … L, [L].
      credit: d_k of its pre-activations, [L], relative to the last layer's.
    """

    inputs: jax.Array
    credit: jax.Array

    @property
    def imbalance(self) -> jax.Array:
        """The factor ⟨q⟩⟨d⟩/⟨q d⟩ on node perturbation's variance, over the first 1, 2 … L layers, [L].

        With layers of equal width and one example, the relative variance E‖ĝ − g‖²/‖g‖² is N ⟨q⟩⟨d⟩/⟨q d⟩ for N nodes,
        up to a term of order 1 (`perturbation.nodes`). The factor is 1 if norms are preserved. A network of fewer
        layers has the same q and, up to a factor, the same d.
        """
        layers = jnp.arange(1, len(self.inputs) + 1).astype(self.inputs.dtype)
        return jnp.cumsum(self.inputs) * jnp.cumsum(self.credit) / (jnp.cumsum(self.inputs * self.credit) * layers)


def mean_squares(
    activation: Callable[[jax.Array], jax.Array], depth: int, *, gain: float, start: float = 1.0
) -> MeanSquares:
    """Computes q and d of a network whose hidden layers share one activation and whose last layer is linear.

    Args:
      activation: f, elementwise and differentiable almost everywhere.
      depth: L, layers with weights, including the last; at least 1.
      gain: g, above 0: 1 for `lecun_normal`, 2 for `he_normal`.
      start: q_0, the mean square of the inputs, above 0.

    Raises:
      ValueError: for a number out of range.

    >>> import jax
    >>> [f"{factor:.3f}" for factor in mean_squares(jax.nn.relu, 4, gain=1).imbalance]
    ['1.000', '1.125', '1.361', '1.758']
    """
    in_range(depth=(depth, 1))
    for name, value in {"gain": gain, "start": start}.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    z, weights = (jnp.asarray(values) for values in np.polynomial.hermite_e.hermegauss(_POINTS))
    weights = weights / jnp.sum(weights)

    def layer(q: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        f, slope = jax.vmap(jax.value_and_grad(activation))(jnp.sqrt(gain * q) * z)
        return jnp.sum(weights * f**2), (q, gain * jnp.sum(weights * slope**2))

    last, (below, factors) = jax.lax.scan(layer, jnp.asarray(start, z.dtype), length=depth - 1)
    credit = jnp.cumprod(jnp.append(factors, 1.0)[::-1])[::-1]
    return MeanSquares(jnp.append(below, last), credit)
