"""Measures how far an update moves the distribution of a layer's values."""

from typing import NamedTuple

import numpy as np

from experiments.covariate_shift.network import Measured
from experiments.harness.sweep import lowest


class Results(NamedTuple):
    """Measurements by scheme, at moments t, t + 1, t′, t′ + 1 …; `updates` holds t, t′ …"""

    updates: np.ndarray
    measured: dict[str, Measured]

    def best(self, scheme: str) -> int:
        """Returns the index of the rate that validation chooses."""
        return lowest(self.measured[scheme].scores.loss["validation"][..., -1])

    def shifts(self, scheme: str) -> np.ndarray:
        """Returns the shift of every hidden layer's axons (activity) in one update, [layers, rates, seeds, moments]."""
        return np.stack([shift(*_pairs(axons)) for axons in self.measured[scheme].axons.values()])

    def received(self, scheme: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the same shift of the inputs to normalised layers' activations, measured and by theory."""
        found = self.measured[scheme]
        laws = {layer: np.stack([own["beta"], np.abs(own["gamma"])], axis=-2) for layer, own in found.own.items()}
        measured, law = ([shift(*_pairs(of[layer])) for layer in laws] for of in (found.received, laws))
        return np.stack(measured), np.stack(law)


def shift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the shift of a layer's values, in standard deviations: √(Σ_u W₂²(u) / Σ_u σ_u²).

    W₂ is the Wasserstein distance between the Gaussians with a unit's mean and standard deviation before and after:
    W₂² = (μ′ − μ)² + (σ′ − σ)² (Dowson & Landau 1982). σ is the standard deviation before.

    Args:
      before, after: means and standard deviations, […, 2, units].

    Returns:
      The shift, of shape […].
    """
    moved = np.sum((after - before) ** 2, axis=(-2, -1))
    return np.sqrt(moved / np.sum(before[..., 1, :] ** 2, axis=-1))


def _pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits [rates, seeds, moments, …] into values before and after an update."""
    return values[:, :, ::2], values[:, :, 1::2]
