"""Learning speed of a linear unit as a function of its inputs' mean and covariance (LeCun, Kanter & Solla 1991).

A unit ŷ = wᵀx + b under the loss ½ (1/N) Σ_n (ŷ_n − y_n)² has the Hessian

    H = (1/N) Σ_n (x_n, 1)(x_n, 1)ᵀ

with eigenvalues λ_i, here called curvatures. A step of gradient descent multiplies the error along the i-th
eigenvector by 1 − η λ_i. The slowest mode limits learning; at the best rate its speed depends only on the condition
number κ = λ_max/λ_min. κ = 1 means H = I, uncorrelated inputs of zero mean and unit variance, which are learned in one
step (seed 001 §5). The variance must equal that of the bias's input, which is 1.

Curvatures are float64 arrays or lists of numbers above 0, in any order.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nl_jax.theory.ranges import in_range


def hessian(x: jax.Array) -> jax.Array:
    """Computes H of inputs x, [N, D], and a bias: [D + 1, D + 1], the bias last.

    Raises:
      ValueError: if x is of another rank.
    """
    if x.ndim != 2:
        raise ValueError(f"x must be of shape [N, D], got {list(x.shape)}")
    with_bias = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    return with_bias.T @ with_bias / len(x)


def condition_number(curvatures: ArrayLike) -> float:
    """The condition number κ = λ_max/λ_min, at least 1.

    Raises:
      ValueError: for a curvature of 0 or below, whose mode is never learned.
    """
    least, largest = _extremes(curvatures)
    return largest / least


def best_rate(curvatures: ArrayLike) -> float:
    """The best rate, η = 2/(λ_min + λ_max), at which the modes of least and largest curvature decay equally fast.

    Raises:
      ValueError: for a curvature of 0 or below.

    >>> best_rate([0.5, 1.5, 1.0])
    1.0
    """
    return 2 / sum(_extremes(curvatures))


def contraction(rate: ArrayLike, curvatures: ArrayLike) -> np.ndarray:
    """The factor by which one step multiplies the slowest mode's error, ρ = max_i |1 − η λ_i|, of the shape of `rate`.

    Its minimum, at the best rate, is (κ − 1)/(κ + 1). It is 1 or more from η = 2/λ_max on.

    Raises:
      ValueError: for a curvature of 0 or below.

    >>> float(contraction(best_rate([0.5, 1.5, 1.0]), [0.5, 1.5, 1.0]))
    0.5
    """
    rate = np.asarray(rate, np.float64)
    return np.maximum(*(np.abs(1 - rate * curvature) for curvature in _extremes(curvatures)))


def steps(condition: float, reduction: float) -> int:
    """Steps at the best rate until the excess loss has fallen to 1/r or less: t ≥ ln r / (2 ln((κ + 1)/(κ − 1))).

    The worst start needs exactly this number, any other start no more. For large κ it is κ ln(r)/4.

    Args:
      condition: κ, at least 1; for κ = 1 one step suffices.
      reduction: r, above 1.

    Raises:
      ValueError: for a number out of range.

    >>> steps(3.0, 17.0), steps(1.0, 17.0)
    (3, 1)
    """
    in_range(condition=(condition, 1), reduction=(reduction, 1))
    if reduction == 1:
        raise ValueError("reduction must be above 1, got 1: no step is needed for that")
    if condition == 1:
        return 1
    return math.ceil(math.log(reduction) / (2 * math.log((condition + 1) / (condition - 1))))


def excess_loss(curvatures: ArrayLike, errors: ArrayLike, rate: float, steps: ArrayLike) -> np.ndarray:
    """The excess loss L(w_t) − L(w*) = ½ Σ_i λ_i (1 − η λ_i)^{2t} e_i² after t steps of gradient descent.

    Args:
      curvatures: λ, [modes].
      errors: e_i = v_iᵀ(w_0 − w*) along the eigenvectors, in the same order, [modes].
      rate: η.
      steps: t, whole numbers of at least 0 of any shape.

    Returns:
      float64, of the shape of `steps`.

    Raises:
      ValueError: if `curvatures` and `errors` are of different shapes.
    """
    curvatures, errors, steps = (np.asarray(value, np.float64) for value in (curvatures, errors, steps))
    if curvatures.ndim != 1 or errors.shape != curvatures.shape:
        raise ValueError(
            f"curvatures and errors must be of the same shape [modes], got {list(curvatures.shape)} and "
            f"{list(errors.shape)}"
        )
    decay = (1 - rate * curvatures) ** (2 * steps[..., None])
    return decay @ (curvatures * errors**2) / 2


def uncorrelated(D: int, *, mean: float, deviation: float) -> np.ndarray:
    """Curvatures of D uncorrelated inputs, all of mean μ and standard deviation σ, and a bias: [D + 1], ascending.

        σ², D − 1 times, and both roots of λ² − (1 + σ² + D μ²) λ + σ² = 0

    They are equal only for μ = 0 and σ = 1. A mean enters as D times its square: κ ≈ (2 + D μ²)² for σ = 1.

    Args:
      D: inputs, at least 1.
      mean: μ.
      deviation: σ, above 0.

    Raises:
      ValueError: for a number out of range.

    >>> uncorrelated(3, mean=0.0, deviation=2.0)
    array([1., 4., 4., 4.])
    """
    in_range(D=(D, 1), deviation=(deviation, 0))
    if not math.isfinite(mean):
        raise ValueError(f"mean must be a finite number, got {mean!r}")
    if deviation == 0:
        raise ValueError("deviation must be above 0, got 0: inputs that do not vary teach nothing but the bias")
    half = (1 + deviation**2 + D * mean**2) / 2
    larger = half + math.sqrt(half**2 - deviation**2)
    return np.sort([deviation**2 / larger, *[deviation**2] * (D - 1), larger])


def _extremes(curvatures: ArrayLike) -> tuple[float, float]:
    values = np.asarray(curvatures, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"curvatures must be one or more finite numbers above 0, got {curvatures!r}")
    return float(values.min()), float(values.max())
