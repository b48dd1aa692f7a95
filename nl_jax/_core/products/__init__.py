"""Products of inputs with weights, and lazy weights: weights that are multiplied without being formed."""

from nl_jax._core.deprecation import renamed as _renamed
from nl_jax._core.products.lazy_weight import LazyWeight, OtherUse, Shifted, as_slices, looked_up, mapped, product
from nl_jax._core.products.unfolding import unfold
from nl_jax._core.products.use import EXAMPLES, Use, use

__all__ = [
    "EXAMPLES",
    "LazyWeight",
    "OtherUse",
    "Shifted",
    "Use",
    "as_slices",
    "looked_up",
    "mapped",
    "product",
    "unfold",
    "use",
]

__getattr__ = _renamed(__name__, {"StandIn": "LazyWeight"})
