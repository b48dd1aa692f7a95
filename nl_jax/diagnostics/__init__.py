"""Measures of estimators: accuracy and cost with standard errors, and identification of learning rules."""

from nl_jax.diagnostics.accuracy import Measurement, cosine, measure
from nl_jax.diagnostics.alignment import Traced, alignment, angle, by_layer, by_leaf, trace_alignment
from nl_jax.diagnostics.efficiency import Efficiency, Row, efficiency
from nl_jax.diagnostics.identify import Identified, Trajectory, identify
from nl_jax.diagnostics.plasticity import (
    Plasticity,
    plasticity_from_activity,
    plasticity_from_readings,
    plasticity_from_weights,
)

__all__ = [
    "Efficiency",
    "Identified",
    "Measurement",
    "Plasticity",
    "Row",
    "Traced",
    "Trajectory",
    "alignment",
    "angle",
    "by_layer",
    "by_leaf",
    "cosine",
    "efficiency",
    "identify",
    "measure",
    "plasticity_from_activity",
    "plasticity_from_readings",
    "plasticity_from_weights",
    "trace_alignment",
]
