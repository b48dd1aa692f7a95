"""SoftHebb: Hebbian learning in a soft winner-take-all layer (Moraitis et al. 2022, Journé et al. 2023)."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_hyperparameter
from nl_jax.base import Array, Params
from nl_jax.rules.rule import Change, Rule, mean, mean_outer, unsupervised


def soft_hebb(*, temperature: float = 1.0, anti_hebbian: bool = False) -> Rule:
    """SoftHebb: Δw_j = ⟨s_j (x − u_j w_j)⟩, u = Wᵀ x, s = softmax(u / τ) (Moraitis et al. 2022, Journé et al. 2023).

    Units compete softly for each input, and the decay keeps ‖w_j‖ at 1. The competition is part of the rule, so the
    layer may have any activation and layers can be stacked. Biases neither compete nor change.

    Args:
      temperature: τ, above 0; near 0 the winner takes all.
      anti_hebbian: whether s_j has the opposite sign for all units but the winner. This drives features apart and is
        the version that Journé et al. (2023) stack.

    Raises:
      ValueError: if temperature is not a finite number above 0.
    """
    positive_hyperparameter("temperature", temperature)

    def change(params: Params, x: Array, y: Array) -> Change:
        del y
        W = params["weight"]
        u = x @ W
        s = jax.nn.softmax(u / jnp.asarray(temperature, u.dtype), axis=1)
        if anti_hebbian:
            wins = jax.nn.one_hot(jnp.argmax(u, axis=1), u.shape[1], dtype=bool)
            s = jnp.where(wins, s, -s)
        return {"weight": mean_outer(x, s) - W * mean(s * u)}

    return unsupervised(change)
