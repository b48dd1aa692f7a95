"""An exponential mean of past losses."""

from typing import NamedTuple

import jax.numpy as jnp

from nl_jax.base import Array


class RunningMean(NamedTuple):
    """An exponential mean as its total and its weight, so that its start adds no bias."""

    total: Array
    weight: Array

    @property
    def mean(self) -> Array:
        """The mean; 0 before anything was seen."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1), 0)

    def seen(self, loss: Array, decay: float) -> "RunningMean":
        """Adds one loss to the mean; non-finite losses are skipped, because they would never leave the mean."""
        kept = jnp.isfinite(loss)
        total = decay * self.total + (1 - decay) * loss.astype(self.total.dtype)
        weight = decay * self.weight + (1 - decay)
        return RunningMean(jnp.where(kept, total, self.total), jnp.where(kept, weight, self.weight))


def nothing_seen() -> RunningMean:
    """The mean of no losses."""
    return RunningMean(jnp.zeros(()), jnp.zeros(()))
