"""Laws of random directions ξ: zero mean, E ξξᵀ = I, so that E (gᵀξ) ξ = g for any gradient g.

A law is a function `law(key, index, template) -> direction`: the index-th direction of the estimate that `key` belongs
to, as a tree like the template. Any function of that form works; these are made by a call, such as `rademacher()`. A
structured law (`low_rank`, `flipout`) draws leaves of two axes or more as `structured.Structured` and all others as
arrays. Estimators draw large leaves block by block, and store none of them.
"""

from nl_jax.estimators.directions.coordinate import coordinate
from nl_jax.estimators.directions.flipout import flipout
from nl_jax.estimators.directions.independent import gaussian, rademacher, sparse
from nl_jax.estimators.directions.layerwise import layerwise
from nl_jax.estimators.directions.low_rank import low_rank, rank_one
from nl_jax.estimators.directions.orthogonal import orthogonal
from nl_jax.estimators.directions.sphere import sphere
from nl_jax.estimators.directions.structured import Direction, Law, Structured

__all__ = [
    "Direction",
    "Law",
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
