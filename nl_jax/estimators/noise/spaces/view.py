"""The interface of a perturbation space."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax.base import Array, Batch, Key, LayerCredit, Params
from nl_jax.estimators.noise.directions import Direction, Sampler
from nl_jax.estimators.noise.sampling import Share


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


class Layers(NamedTuple):
    """How a space of layers turns rates of change into credit, and credit into a gradient.

    Attributes:
      judged: `judged(measure, chunk, share) -> (mean credit, mean loss)`, over all samples, of which this device
        evaluates its share; `chunk` samples at once, None for the default.
      gradient: `gradient(mean credit) -> grads`, calibrated to the mean loss.
      credit: `credit(mean credit) -> {layer: LayerCredit}`.
    """

    judged: Callable[[Measure, int | None, Share], tuple[Params, Array]]
    gradient: Callable[[Params], Params]
    credit: Callable[[Params], dict[str, LayerCredit]]


class View(NamedTuple):
    """A space at given parameters and a given batch, with the noise of one estimate.

    Attributes:
      draw: `draw(index) -> direction`, the index-th direction of the estimate.
      clean: `clean() -> losses` without displacement, [batch].
      displaced: `displaced(direction, sigma) -> losses`, [batch], a step of σ along the direction.
      both_sides: `both_sides(direction, sigma) -> (losses, losses)`, a step forward and a step back.
      tangent: `tangent() -> (losses, along)`, the exact derivative at σ = 0.
      dtypes: of all that is displaced.
      components: P, the number of components of one direction.
      fixed_cost: evaluations per estimate, whatever the number of samples.
      clean_cost: the additional evaluations of `clean`.
      tangent_cost: the evaluations of an exact derivative along one direction.
      chunk: the default number of samples at once.
      rates: for weights, `rates(measure, chunk, indices) -> (rates, losses)` along some directions: rates [K, 1], or
        [K, batch] where every example has its own directions, and mean losses [K]; `chunk` samples at once, None for
        the default. The gradient follows from them.
      directions: for weights, a `nl_jax.estimators.sampled.Directions`, with which to draw them again.
      layers: for nodes, how credit is formed; None for weights.
    """

    draw: Callable[[Array], Direction]
    clean: Callable[[], Array]
    displaced: Callable[[Direction, Any], Array]
    both_sides: Callable[[Direction, float | Array], tuple[Array, Array]]
    tangent: Callable[[], tuple[Array, Along]]
    dtypes: list[jnp.dtype]
    components: int
    fixed_cost: int
    clean_cost: int
    tangent_cost: int
    chunk: int
    rates: Any = None
    directions: Any = None
    layers: Layers | None = None


Space = Callable[[Params, Batch, Noise], View]


def weighted_sum(rates: Array, directions: Array) -> Array:
    """Computes Σ_k rate_k ξ_k, for `rates` [k] and `directions` [k, …], in float32 at least."""
    wide = wide_dtype(directions.dtype)
    return jnp.tensordot(rates.astype(wide), directions.astype(wide), axes=1)
