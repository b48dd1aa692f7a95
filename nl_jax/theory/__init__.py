"""Closed-form results to compare learning with: pure functions of arrays, one subject per file."""

from nl_jax.theory import (
    activity_perturbation,
    conditioning,
    conservation,
    deep_linear,
    delta_rule,
    hebbian,
    linear_neuron,
    mean_field,
    mismatch,
    multipliers,
    perceptron,
    perturbation,
    predictive_coding,
    student_teacher,
    temporal,
)

__all__ = [
    "activity_perturbation",
    "conditioning",
    "conservation",
    "deep_linear",
    "delta_rule",
    "hebbian",
    "linear_neuron",
    "mean_field",
    "mismatch",
    "multipliers",
    "perceptron",
    "perturbation",
    "predictive_coding",
    "student_teacher",
    "temporal",
]
