"""How good an estimator is and what it costs, measured, with standard errors."""

from nl_jax.diagnostics.accuracy import Measurement, cosine, measure
from nl_jax.diagnostics.alignment import Traced, alignment, angle, by_layer, by_leaf, trace_alignment
from nl_jax.diagnostics.efficiency import Efficiency, Row, efficiency

__all__ = [
    "Efficiency",
    "Measurement",
    "Row",
    "Traced",
    "alignment",
    "angle",
    "by_layer",
    "by_leaf",
    "cosine",
    "efficiency",
    "measure",
    "trace_alignment",
]
