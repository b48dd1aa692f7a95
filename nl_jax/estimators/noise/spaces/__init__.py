"""Spaces in which a network can be perturbed: its weights, some directions of its weights, or its nodes.

A space is a function `space(params, batch, noise) -> View`.
"""

from nl_jax.estimators.noise.spaces.node_space import Credit, nodes, per_batch_credit, per_example_credit
from nl_jax.estimators.noise.spaces.subspace import subspace
from nl_jax.estimators.noise.spaces.view import Noise, Space, View
from nl_jax.estimators.noise.spaces.weight_space import weights

__all__ = ["Credit", "Noise", "Space", "View", "nodes", "per_batch_credit", "per_example_credit", "subspace", "weights"]
