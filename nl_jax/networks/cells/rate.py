"""Cells of graded units: Elman, leaky and gated."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_integer, positive_number
from nl_jax.activations import identity, sigmoid, tanh
from nl_jax.base import ActivationFn, Array, Initializer, Key, Params, Propagate
from nl_jax.networks.cells.cell import RECURRENT_INIT, WEIGHT_INIT, Carry, Cell, connected, silent, weights


def rnn(
    units: int,
    *,
    activation: ActivationFn | None = None,
    weight_init: Initializer = WEIGHT_INIT,
    recurrent_init: Initializer = RECURRENT_INIT,
) -> Cell:
    """Elman units, h_t = f(W x_t + U h_{t−1} + b) (Elman 1990): one layer, "hidden".

    Args:
      units: number of units, at least 1.
      activation: f, by default tanh.
      weight_init: scheme for W [inputs, units].
      recurrent_init: scheme for U [units, units].

    Raises:
      ValueError: if `units` is not as described.
    """
    return leaky(units, rate=1.0, activation=activation, weight_init=weight_init, recurrent_init=recurrent_init)


def leaky(
    units: int,
    *,
    rate: float,
    activation: ActivationFn | None = None,
    weight_init: Initializer = WEIGHT_INIT,
    recurrent_init: Initializer = RECURRENT_INIT,
) -> Cell:
    """Leaky rate units, h_t = (1 − α) h_{t−1} + α f(W x_t + U h_{t−1} + b) (Murray 2019, eq. 1).

    Args:
      units: number of units, at least 1.
      rate: α = Δt/τ, above 0 and at most 1; 1 gives `rnn`.
      activation: f, by default tanh.
      weight_init: scheme for W [inputs, units].
      recurrent_init: scheme for U [units, units].

    Raises:
      ValueError: if a setting is not as described.
    """
    units, alpha = positive_integer("units", units), positive_number("rate", rate)
    if alpha > 1:
        raise ValueError(f"rate must be at most 1, the time step over the time constant, got {rate!r}")
    f = tanh() if activation is None else activation

    def init(key: Key, inputs: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
        return {"hidden": weights(key, inputs, units, dtype, weight_init, recurrent_init)}

    def step(params: Params, carry: Carry, x: Array, propagate: Propagate) -> tuple[Carry, Array]:
        fed = propagate("hidden", connected, f, params["hidden"], x, carry["h"])
        h = fed if alpha == 1 else (1 - alpha) * carry["h"] + alpha * fed
        return {"h": h}, h

    return Cell(units, init, silent("h", units=units), step)


def gru(units: int, *, weight_init: Initializer = WEIGHT_INIT, recurrent_init: Initializer = RECURRENT_INIT) -> Cell:
    """Gated recurrent units (Cho et al. 2014): three layers, "update", "reset" and "candidate".

        z = σ(W_z x + U_z h + b_z),  r = σ(W_r x + U_r h + b_r)
        h_t = z h_{t−1} + (1 − z) tanh(W x + r (U h_{t−1} + c) + b)

    The reset gate is applied after the recurrent product, as in most implementations: U h_{t−1} + c is a separate
    layer, "recurrent", and all later operations are elementwise.

    Args:
      units: number of units, at least 1.
      weight_init: scheme for the W [inputs, units].
      recurrent_init: scheme for the U [units, units].

    Raises:
      ValueError: if `units` is not as described.
    """
    units = positive_integer("units", units)

    def init(key: Key, inputs: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
        keys = jax.random.split(key, 4)
        gates = {
            name: weights(k, inputs, units, dtype, weight_init, recurrent_init)
            for name, k in zip(("update", "reset"), keys, strict=False)
        }
        candidate = {"weight": weight_init(keys[2], (inputs, units), dtype), "bias": jnp.zeros(units, dtype)}
        recurrent = {"weight": recurrent_init(keys[3], (units, units), dtype), "bias": jnp.zeros(units, dtype)}
        return gates | {"candidate": candidate, "recurrent": recurrent}

    def step(params: Params, carry: Carry, x: Array, propagate: Propagate) -> tuple[Carry, Array]:
        h = carry["h"]
        z = propagate("update", connected, sigmoid(), params["update"], x, h)
        r = propagate("reset", connected, sigmoid(), params["reset"], x, h)
        fed = propagate("recurrent", affine, identity(), params["recurrent"], h)
        candidate = jnp.tanh(propagate("candidate", affine, identity(), params["candidate"], x) + r * fed)
        h = z * h + (1 - z) * candidate
        return {"h": h}, h

    return Cell(units, init, silent("h", units=units), step)


def affine(params: Params, x: Array) -> Array:
    """Computes ν = x W + b."""
    return x @ params["weight"] + jnp.expand_dims(params["bias"], 0)
