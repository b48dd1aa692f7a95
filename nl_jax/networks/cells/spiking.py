"""Integrate-and-fire cells.

The layer is the input current, ν = W x + U z + b, without an activation. The membrane, its threshold and its reset are
arithmetic between layers. Noise on ν is therefore a noisy current, which needs no derivative of the spikes, and a
weight's trace passes through the membrane of its own unit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax._core.require import nonnegative_number, positive_integer, positive_number, takes
from nl_jax.activations import identity
from nl_jax.base import Array, Initializer, Key, Params, Propagate
from nl_jax.networks.cells.cell import RECURRENT_INIT, WEIGHT_INIT, Carry, Cell, connected, silent, weights
from nl_jax.networks.cells.surrogates import Spike, fast_sigmoid

Reset = Callable[[Array, Array, float], Array]
"""`reset(v, z, threshold) -> v`, the membrane potential after the previous step's spikes z."""


def subtract(v: Array, z: Array, threshold: float) -> Array:
    """Resets by subtraction, v − θ z: the excess above the threshold is kept."""
    return v - threshold * z


def to_zero(v: Array, z: Array, threshold: float) -> Array:
    """Resets to zero, (1 − z) v."""
    del threshold
    return (1 - z) * v


def lif(
    units: int,
    *,
    decay: float = 0.9,
    threshold: float = 1.0,
    adaptation: float = 0.0,
    adaptation_decay: float = 0.97,
    current_decay: float = 0.0,
    spike: Spike | None = None,
    reset: Reset = subtract,
    weight_init: Initializer = WEIGHT_INIT,
    recurrent_init: Initializer = RECURRENT_INIT,
) -> Cell:
    """Leaky integrate-and-fire units, with optional adaptive thresholds and synaptic currents.

        i_t = κ i_{t−1} + W x_t + U z_{t−1} + b
        v_t = α (v_{t−1} reset by z_{t−1}) + i_t
        z_t = H(v_t − θ − β a_t),   a_t = ρ a_{t−1} + z_{t−1}          (Bellec et al. 2020, eq. 6–10)

    No credit passes through the reset, as is usual with surrogate derivatives. The state is v and z, plus a for
    adaptive units and i for synaptic currents.

    Args:
      units: number of units, at least 1.
      decay: α = e^{−Δt/τ_m} of the membrane, at least 0 and below 1.
      threshold: θ, above 0.
      adaptation: β, at least 0: how much a spike raises the unit's threshold; 0 removes a.
      adaptation_decay: ρ = e^{−Δt/τ_a}, at least 0 and below 1.
      current_decay: κ = e^{−Δt/τ_s} of the synaptic current, at least 0 and below 1; 0 removes i.
      spike: H with its surrogate derivative, from `nl.surrogates`; by default `fast_sigmoid()`. Gradient-free
        estimators need no derivative and can use `nl.surrogates.heaviside()`.
      reset: `nl.cells.subtract` or `nl.cells.to_zero`.
      weight_init: scheme for W [inputs, units].
      recurrent_init: scheme for U [units, units].

    Returns:
      A `Cell` of one layer, "hidden", whose outputs are the spikes, 0 or 1.

    Raises:
      ValueError: if a setting is not as described.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> cell = lif(3, decay=0.5)
    >>> params = {"hidden": {"weight": 0.6 * jnp.ones((1, 3)), "recurrent": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}}
    >>> carry, xs = cell.start(1), jnp.ones((4, 1, 1))
    >>> step = lambda carry, x, propagate: cell.step(params, carry, x, propagate)
    >>> [int(z) for z in nl.scan("time", step, carry, xs, nl.propagation.feedforward)[1][:, 0, 0]]
    [0, 0, 1, 0]
    """
    units, threshold = positive_integer("units", units), positive_number("threshold", threshold)
    alpha, rho = _decay("decay", decay), _decay("adaptation_decay", adaptation_decay)
    kappa, beta = _decay("current_decay", current_decay), nonnegative_number("adaptation", adaptation)
    fire = fast_sigmoid() if spike is None else spike
    takes("spike", fire, 1, "choose one of nl.surrogates, made by a call such as nl.surrogates.fast_sigmoid()")
    takes("reset", reset, 3, "choose nl.cells.subtract or nl.cells.to_zero")

    def init(key: Key, inputs: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
        return {"hidden": weights(key, inputs, units, dtype, weight_init, recurrent_init)}

    def step(params: Params, carry: Carry, x: Array, propagate: Propagate) -> tuple[Carry, Array]:
        current = propagate("hidden", connected, identity(), params["hidden"], x, carry["z"])
        spiked = jax.lax.stop_gradient(carry["z"])
        after: Carry = {}
        if kappa:
            after["i"] = current = kappa * carry["i"] + current
        after["v"] = v = alpha * reset(carry["v"], spiked, threshold) + current
        above = v - threshold
        if beta:
            after["a"] = rho * carry["a"] + carry["z"]
            above = above - beta * after["a"]
        after["z"] = fire(above)
        return after, after["z"]

    names = ["v", "z", *(["a"] if beta else []), *(["i"] if kappa else [])]
    return Cell(units, init, silent(*names, units=units), step)


def _decay(name: str, value: float) -> float:
    value = nonnegative_number(name, value)
    if value >= 1:
        raise ValueError(f"{name} must be below 1, e^(−Δt/τ) of a time constant τ, got {value!r}")
    return value
