"""How good an estimator is and what it costs, measured, with standard errors."""

from nl_jax.diagnostics.accuracy import Measurement, cosine, measure
from nl_jax.diagnostics.efficiency import Efficiency, Row, efficiency

__all__ = ["Efficiency", "Measurement", "Row", "cosine", "efficiency", "measure"]
