"""nl_jax, "neuron learning in JAX": one calibrated interface to the ways a network can learn.

Docstrings cite three documents that the project grew from: "seed 000", R. Schaeffer's notes on neural networks; "seed
001", the lecture notes "Backpropagation in Neural Networks"; "seed 003", the notes of the NeuronLearning project.
"""

from nl_jax import activations, base, losses, objectives, optimizers, propagation, rules, theory
from nl_jax._core import products, require
from nl_jax._core.deprecation import renamed as _renamed
from nl_jax._core.deprecation import renamed_module as _renamed_module
from nl_jax._core.failures import raise_if_failed
from nl_jax.base import Failure, GradientEstimator, Info, LayerCredit, Learner, LearnerState
from nl_jax.estimators.augment_batches import augment_batches
from nl_jax.estimators.backprop import backprop
from nl_jax.estimators.backprop_recursion import backprop_recursion
from nl_jax.estimators.by_block import by_block
from nl_jax.estimators.compose import average, batch_sum, mix, partition
from nl_jax.estimators.equilibrium import nudges
from nl_jax.estimators.equilibrium.at_equilibrium import at_equilibrium
from nl_jax.estimators.equilibrium.contrastive_hebbian import contrastive_hebbian
from nl_jax.estimators.equilibrium.dual_propagation import dual_propagation
from nl_jax.estimators.equilibrium.equilibrium_propagation import equilibrium_propagation
from nl_jax.estimators.feedback import weights as feedback
from nl_jax.estimators.feedback.direct_feedback_alignment import direct_feedback_alignment, direct_feedback_weights
from nl_jax.estimators.feedback.feedback_alignment import feedback_alignment
from nl_jax.estimators.feedback.target_propagation import difference_target_propagation
from nl_jax.estimators.lagrangian import initial_activity, layer_solves
from nl_jax.estimators.lagrangian.adjoint import lagrangian_backprop
from nl_jax.estimators.lagrangian.admm import admm
from nl_jax.estimators.lagrangian.augmented_lagrangian import augmented_lagrangian
from nl_jax.estimators.lagrangian.auxiliary_coordinates import auxiliary_coordinates
from nl_jax.estimators.lagrangian.error_predictive_coding import error_predictive_coding
from nl_jax.estimators.lagrangian.extragradient import extragradient
from nl_jax.estimators.lagrangian.fixed_prediction import fixed_prediction
from nl_jax.estimators.lagrangian.lagrangian import KKT, lagrangian
from nl_jax.estimators.lagrangian.predictive_coding import predictive_coding
from nl_jax.estimators.lagrangian.primal_dual import primal_dual
from nl_jax.estimators.lagrangian.zero_divergence import zero_divergence
from nl_jax.estimators.noise import baselines, directions, reward_baselines, shaping, spaces
from nl_jax.estimators.noise import stochastic_units as units
from nl_jax.estimators.noise.activity_node_perturbation import activity_node_perturbation
from nl_jax.estimators.noise.engine.perturbation import perturbation
from nl_jax.estimators.noise.evolution_strategy import evolution_strategy
from nl_jax.estimators.noise.forward_gradient import forward_gradient
from nl_jax.estimators.noise.iterative_node_perturbation import iterative_node_perturbation
from nl_jax.estimators.noise.node_perturbation import node_perturbation
from nl_jax.estimators.noise.normalised import normalised
from nl_jax.estimators.noise.reinforce import reinforce
from nl_jax.estimators.noise.spaces import bases
from nl_jax.estimators.noise.subspace_perturbation import subspace_perturbation
from nl_jax.estimators.noise.weight_perturbation import weight_perturbation
from nl_jax.estimators.online.e_prop import e_prop
from nl_jax.estimators.online.rflo import rflo
from nl_jax.estimators.online.rtrl import rtrl
from nl_jax.estimators.online.snap import snap
from nl_jax.estimators.online.three_factor import three_factor
from nl_jax.estimators.online.truncated_backprop import truncated_backprop
from nl_jax.estimators.online.uoro import uoro
from nl_jax.evaluation import conformance, diagnostics
from nl_jax.evaluation.audit.audit import audit
from nl_jax.networks import cells, connections, normalisation, scalings
from nl_jax.networks.adapters.model import LinenModel, SplitModel
from nl_jax.networks.cells import surrogates
from nl_jax.networks.cells.recurrent import recurrent
from nl_jax.networks.conversion import tanh_from_sigmoid
from nl_jax.networks.from_equinox import from_equinox
from nl_jax.networks.from_flax import from_flax
from nl_jax.networks.layers import Layer
from nl_jax.networks.mlp import mlp
from nl_jax.networks.normalisation import batch_norm
from nl_jax.networks.residual import Residual, residual
from nl_jax.networks.wiring import Network, network
from nl_jax.objectives import bandit, device, local_losses, supervised
from nl_jax.objectives.parts import Part, train_only
from nl_jax.propagation import scan
from nl_jax.rules.decorrelation import decorrelation
from nl_jax.rules.local_learning import local_learning
from nl_jax.training import batching, logs
from nl_jax.training.alternating import Stage, alternating
from nl_jax.training.fit import fit
from nl_jax.training.in_place import seeded
from nl_jax.training.learner import learner
from nl_jax.training.outcome import Diverged, Exhausted, Interrupted, Report, Terminated
from nl_jax.training.replay import replay
from nl_jax.training.replay_log import TrainingLog
from nl_jax.training.restarts import Restarts, restarts
from nl_jax.training.sweep import sweep
from nl_jax.training.sweep_results import Sweep

__version__ = "0.1.0"

__all__ = [
    "KKT",
    "Diverged",
    "Exhausted",
    "Failure",
    "GradientEstimator",
    "Info",
    "Interrupted",
    "Layer",
    "LayerCredit",
    "Learner",
    "LearnerState",
    "LinenModel",
    "Network",
    "Part",
    "Report",
    "Residual",
    "Restarts",
    "SplitModel",
    "Stage",
    "Sweep",
    "Terminated",
    "TrainingLog",
    "activations",
    "activity_node_perturbation",
    "admm",
    "alternating",
    "at_equilibrium",
    "audit",
    "augment_batches",
    "augmented_lagrangian",
    "auxiliary_coordinates",
    "average",
    "backprop",
    "backprop_recursion",
    "bandit",
    "base",
    "baselines",
    "bases",
    "batch_norm",
    "batch_sum",
    "batching",
    "by_block",
    "cells",
    "conformance",
    "connections",
    "contrastive_hebbian",
    "decorrelation",
    "device",
    "diagnostics",
    "difference_target_propagation",
    "direct_feedback_alignment",
    "direct_feedback_weights",
    "directions",
    "dual_propagation",
    "e_prop",
    "equilibrium_propagation",
    "error_predictive_coding",
    "evolution_strategy",
    "extragradient",
    "feedback",
    "feedback_alignment",
    "fit",
    "fixed_prediction",
    "forward_gradient",
    "from_equinox",
    "from_flax",
    "initial_activity",
    "iterative_node_perturbation",
    "lagrangian",
    "lagrangian_backprop",
    "layer_solves",
    "learner",
    "local_learning",
    "local_losses",
    "logs",
    "losses",
    "mix",
    "mlp",
    "network",
    "node_perturbation",
    "normalisation",
    "normalised",
    "nudges",
    "objectives",
    "optimizers",
    "partition",
    "perturbation",
    "predictive_coding",
    "primal_dual",
    "products",
    "propagation",
    "raise_if_failed",
    "recurrent",
    "reinforce",
    "replay",
    "require",
    "residual",
    "restarts",
    "reward_baselines",
    "rflo",
    "rtrl",
    "rules",
    "scalings",
    "scan",
    "seeded",
    "shaping",
    "snap",
    "spaces",
    "subspace_perturbation",
    "supervised",
    "surrogates",
    "sweep",
    "tanh_from_sigmoid",
    "theory",
    "three_factor",
    "train_only",
    "truncated_backprop",
    "units",
    "uoro",
    "weight_perturbation",
    "zero_divergence",
]

_renamed_module("nl_jax.checks", "nl_jax._core.require")
_renamed_module("nl_jax.conformance", "nl_jax.evaluation.conformance")
__getattr__ = _renamed(__name__, {"augmented": "augment_batches", "starts": "initial_activity"})
