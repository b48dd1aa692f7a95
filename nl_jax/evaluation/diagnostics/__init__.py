"""Measures of estimators: accuracy and cost with standard errors, and identification of learning rules."""

from nl_jax._core.deprecation import renamed as _renamed
from nl_jax.evaluation.diagnostics.accuracy import Measurement, cosine, measure
from nl_jax.evaluation.diagnostics.alignment import Traced, alignment, angle, by_layer, by_leaf, trace_alignment
from nl_jax.evaluation.diagnostics.efficiency import Efficiency, EstimatorEfficiency, efficiency
from nl_jax.evaluation.diagnostics.identify import Identified, Trajectory, identify
from nl_jax.evaluation.diagnostics.plasticity import (
    Plasticity,
    plasticity_from_activity,
    plasticity_from_readings,
    plasticity_from_weights,
)

__all__ = [
    "Efficiency",
    "EstimatorEfficiency",
    "Identified",
    "Measurement",
    "Plasticity",
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

__getattr__ = _renamed(__name__, {"Row": "EstimatorEfficiency"})
