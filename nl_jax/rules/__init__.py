"""Local plasticity rules: a layer changes by its own inputs and outputs (seed 000, PCA networks).

Each function, such as `nl.rules.oja()`, makes a rule without a network; `nl.local_learning` trains a network by it.
"""

from nl_jax.rules.apex import apex
from nl_jax.rules.bcm import bcm
from nl_jax.rules.competitive import competitive
from nl_jax.rules.competitive_hebbian import competitive_hebbian
from nl_jax.rules.delta import delta
from nl_jax.rules.hebb import hebb
from nl_jax.rules.instar import instar
from nl_jax.rules.oja import oja
from nl_jax.rules.parametric import parametric
from nl_jax.rules.perceptron import perceptron
from nl_jax.rules.rule import Rule
from nl_jax.rules.sanger import sanger
from nl_jax.rules.soft_hebb import soft_hebb
from nl_jax.rules.spherical import spherical
from nl_jax.rules.subspace import subspace

__all__ = [
    "Rule",
    "apex",
    "bcm",
    "competitive",
    "competitive_hebbian",
    "delta",
    "hebb",
    "instar",
    "oja",
    "parametric",
    "perceptron",
    "sanger",
    "soft_hebb",
    "spherical",
    "subspace",
]
