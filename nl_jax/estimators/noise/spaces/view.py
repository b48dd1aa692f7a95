"""The interface of a perturbation space."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax.base import Array, Batch, Key, LayerCredit, Params, without_credit
from nl_jax.estimators.noise.directions import Direction, Sampler
from nl_jax.estimators.noise.engine.shares import Share


class Noise(NamedTuple):
    """The source of the directions of one estimate.

    Attributes:
      sampler: from `nl.directions`.
      key: the estimate's key.
      num_samples: K, the number of directions drawn.
    """

    sampler: Sampler
    key: Key
    num_samples: int = 1


Along = Callable[[Direction], Array]
"""`along(direction) -> rate of change` of the losses, [batch]."""

Measure = Callable[[Direction], tuple[Array, Array]]
"""`measure(direction) -> (rate of change, losses)`, both [batch]."""


class Costs(NamedTuple):
    """What a space costs, in evaluations of the objective.

    Attributes:
      fixed: per estimate, whatever the number of samples.
      clean: in addition, those of `View.clean`.
      tangent: of the exact derivative along one direction.
    """

    fixed: int
    clean: int
    tangent: int


class View(abc.ABC):
    """A space at given parameters and a given batch, with the noise of one estimate.

    A baseline measures the losses along directions, by the first five methods. The last three turn what was measured
    into a gradient.

    Attributes:
      noise: the noise of the estimate.
      dtypes: of all that is displaced.
      components: P, the number of components of one direction.
      costs: in evaluations.
      chunk: the default number of samples at once.
    """

    noise: Noise
    dtypes: list[jnp.dtype]
    components: int
    costs: Costs
    chunk: int

    @abc.abstractmethod
    def draw(self, index: Array) -> Direction:
        """Returns the index-th direction of the estimate."""

    @abc.abstractmethod
    def clean(self) -> Array:
        """Returns the losses without displacement, [batch]."""

    @abc.abstractmethod
    def displaced(self, direction: Direction, sigma: Any) -> Array:
        """Returns the losses a step of σ along the direction, [batch]."""

    def both_sides(self, direction: Direction, sigma: float | Array) -> tuple[Array, Array]:
        """Returns the losses a step forward and a step back, [batch] each."""
        return self.displaced(direction, sigma), self.displaced(direction, -sigma)

    @abc.abstractmethod
    def tangent(self) -> tuple[Array, Along]:
        """Returns the losses and the exact derivative at σ = 0."""

    def derivative_of_displaced(self, direction: Direction, dtype: jnp.dtype) -> Array:
        """Returns dẼ/dσ at σ = 0 by one forward-mode pass through `displaced`, [batch]."""
        origin = jnp.zeros((), dtype)
        return jax.jvp(lambda sigma: self.displaced(direction, sigma), (origin,), (jnp.ones_like(origin),))[1]

    @abc.abstractmethod
    def judged(self, measure: Measure, chunk: int | None, share: Share) -> tuple[Any, Array]:
        """Measures all samples, of which this device evaluates its share, `chunk` at once (None for the default).

        Returns what the gradient is formed of (weights: the rates of change; nodes: their mean credit) and the mean
        loss.
        """

    @abc.abstractmethod
    def gradient(self, judged: Any) -> Any:
        """Returns the gradient, calibrated to the mean loss: an array for each parameter, or a `SampledGradient`."""

    def credit(self, judged: Any) -> dict[str, LayerCredit]:
        """Returns the credit of each layer.

        Raises:
          ValueError: if the space has no layers.
        """
        return without_credit(self.noise.key, (), judged, None)


Space = Callable[[Params, Batch, Noise], View]


def weighted_sum(rates: Array, directions: Array) -> Array:
    """Computes Σ_k rate_k ξ_k, for `rates` [k] and `directions` [k, …], in float32 at least."""
    wide = wide_dtype(directions.dtype)
    return jnp.tensordot(rates.astype(wide), directions.astype(wide), axes=1)
