"""Descending a narrow valley: steepest descent, conjugate gradients and Adam."""
