"""How far a mean of samples lies from its expected value, in standard errors."""

import numpy as np

from nl_jax.evaluation.conformance.contract import rounding


def largest_deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest deviation of the samples' mean, per component and in length, in measured standard errors.

    The length, ⟨ĝ, g⟩/‖g‖² against 1, is known far more precisely than any single component.
    """
    found = np.column_stack([found, found @ expected / (expected @ expected)])
    expected = np.append(expected, 1.0)
    error = found.std(axis=0, ddof=1) / len(found) ** 0.5 + rounding() * 1e-4  # exact parts vary only by rounding
    return float(np.max(np.abs(found.mean(axis=0) - expected) / error))
