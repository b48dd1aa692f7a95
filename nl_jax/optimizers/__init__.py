"""Conjugate gradients as optax transformations, in the seed's forms."""

from nl_jax.optimizers.betas import Beta, dai_yuan, fletcher_reeves, hestenes_stiefel, polak_ribiere
from nl_jax.optimizers.conjugate_gradient import conjugate_gradient, scale_by_conjugate_gradient
from nl_jax.optimizers.one_evaluation import one_evaluation_conjugate_gradient, scale_by_one_evaluation
from nl_jax.optimizers.quadratic import minimum_of_quadratic

__all__ = [
    "Beta",
    "conjugate_gradient",
    "dai_yuan",
    "fletcher_reeves",
    "hestenes_stiefel",
    "minimum_of_quadratic",
    "one_evaluation_conjugate_gradient",
    "polak_ribiere",
    "scale_by_conjugate_gradient",
    "scale_by_one_evaluation",
]
