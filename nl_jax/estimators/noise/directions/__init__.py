"""Samplers of random directions ξ: zero mean, E ξξᵀ = I, so that E (gᵀξ) ξ = g for any gradient g.

A sampler is a function `sampler(key, index, template) -> direction`: the index-th direction of the estimate that `key`
belongs to, as a tree like the template. Any function of that form works; these are made by a call, such as
`rademacher()`. A structured sampler (`low_rank`, `flipout`) draws leaves of two axes or more as `structured.Structured`
and all others as arrays. Estimators draw large leaves block by block, and store none of them.
"""

from nl_jax._core.deprecation import renamed as _renamed
from nl_jax.estimators.noise.directions.coordinate import coordinate
from nl_jax.estimators.noise.directions.flipout import flipout
from nl_jax.estimators.noise.directions.independent import gaussian, rademacher, sparse
from nl_jax.estimators.noise.directions.layerwise import layerwise
from nl_jax.estimators.noise.directions.low_rank import low_rank, rank_one
from nl_jax.estimators.noise.directions.orthogonal import orthogonal
from nl_jax.estimators.noise.directions.sphere import sphere
from nl_jax.estimators.noise.directions.structured import Direction, Sampler, Structured

__all__ = [
    "Direction",
    "Sampler",
    "Structured",
    "coordinate",
    "flipout",
    "gaussian",
    "layerwise",
    "low_rank",
    "orthogonal",
    "rademacher",
    "rank_one",
    "sparse",
    "sphere",
]

__getattr__ = _renamed(__name__, {"Law": "Sampler"})
