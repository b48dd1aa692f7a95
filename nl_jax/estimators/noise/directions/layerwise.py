"""Directions in one layer at a time, for iterative node perturbation."""

from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.require import takes
from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.sphere import sphere
from nl_jax.estimators.noise.directions.structured import Direction, Sampler, Structured

_SPHERE = sphere()


def layerwise(sampler: Sampler = _SPHERE) -> Sampler:
    """Samples one layer at a time, ξ = √L ξ^l on layer l, the L layers in order from a random first one.

    For a template with L leaves, every L consecutive samples visit each leaf once; the factor √L keeps E ξξᵀ = I. In
    node space a leaf is a layer, and this is the noise of iterative node perturbation (Dalm et al. 2023). In weight
    space a leaf is one parameter.

    For layers of N_l components and credit g_l, K samples of `sphere()` have the relative variance
    Σ_l L (N_l − 1)‖g_l‖²/(K‖g‖²) if K is a multiple of L, and Σ_l (L N_l − 1)‖g_l‖²/‖g‖² if K is 1. Noise in all layers
    at once has (N − 1)/K, with N = Σ N_l. Layers of equal width have (N − L)/K, nearly the same. The variance is
    smaller where narrow layers have most of the credit, and larger where wide ones have it.

    Args:
      sampler: of ξ^l; the j-th visit to a layer takes its j-th direction. By default `sphere()`.

    Returns:
      A sampler that forms all parameters' directions as arrays, even large ones.

    Raises:
      ValueError: if `sampler` is not a sampler; when run, if it draws a parameter as `Structured` (low_rank, flipout).
    """
    takes("sampler", sampler, 3, "a sampler (key, index, template) -> direction, such as nl.directions.sphere()")

    def draw(key: Key, index: Array, template: Params) -> Direction:
        leaves, tree = jax.tree.flatten(template)
        count = len(leaves)
        index = jnp.asarray(index, jnp.int32)
        first = jax.random.randint(jax.random.fold_in(key, count), (), 0, count, jnp.int32)
        chosen = (first + index % count) % count
        parts: list[Any] = []
        for place, leaf in enumerate(leaves):
            own = sampler(jax.random.fold_in(key, place), index // count, leaf)
            if isinstance(own, Structured):
                raise ValueError(
                    f"layerwise cannot switch off a {type(own).__name__} direction: use a sampler of plain arrays, "
                    "such as nl.directions.sphere() or nl.directions.rademacher()"
                )
            parts.append(jnp.where(chosen == place, own * jnp.asarray(count**0.5, own.dtype), 0))
        return jax.tree.unflatten(tree, parts)

    return draw
