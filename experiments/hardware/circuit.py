"""A simulated analogue circuit: a network whose connections are faulty devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import nl_jax as nl
from nl_jax.base import Array, Forward, Key, Params, Propagate
from nl_jax.propagation import feedforward


class Faults(NamedTuple):
    """Faults of a circuit.

    Attributes:
      mismatch: standard deviation of a weight's gain about 1, fixed when the circuit is made.
      drift: standard deviation of the change of gains after 1,000 passes. Gains also decay towards their initial
        values, so the drift stays bounded.
      bits: resolution of the converters that write a weight, over the range ±1.
      noise: standard deviation of the noise added to every pre-activation, fresh in every pass.
    """

    mismatch: float
    drift: float
    bits: int
    noise: float


class Crossbar:
    """One layer's weights as conductances: x ↦ x (gain ∘ quantised W) + b + noise, in NumPy.

    Args:
      faults: of this circuit.
      shape: [inputs, units].
      seed: of the gains, the drift and the noise.
    """

    def __init__(self, faults: Faults, shape: tuple[int, int], seed: int) -> None:
        self._faults, self._random = faults, np.random.default_rng(seed)
        self._made = 1 + faults.mismatch * self._random.standard_normal(shape, np.float32)
        self._wandered = np.zeros(shape, np.float32)
        self._conducting = self._made
        self._asked = np.full(shape, np.nan, np.float32)  # the weights written last; nothing is written yet
        self.passes = 0

    def __call__(self, params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        wanders = self.passes % _WANDERS == 0
        self.passes += 1
        if wanders:
            self._wander()
        if wanders or not np.array_equal(params["weight"], self._asked):  # weights are written when they change
            self._conducting = (self._made + self._wandered) * self._quantised(params["weight"])
            self._asked = params["weight"].copy()
        ideal = x @ self._conducting + params["bias"]
        return ideal + self._faults.noise * self._random.standard_normal(ideal.shape, np.float32)

    def _quantised(self, weight: np.ndarray) -> np.ndarray:
        levels = 2 ** (self._faults.bits - 1) - 1
        return np.clip(np.rint(weight * levels), -levels, levels) / levels

    def _wander(self) -> None:
        keep = np.exp(-_WANDERS / 1000)
        step = self._random.standard_normal(self._made.shape, np.float32)
        self._wandered = keep * self._wandered + self._faults.drift * np.sqrt(1 - keep**2) * step


_WANDERS = 10
"""Passes between two steps of the drift."""


class Circuit(NamedTuple):
    """A network on hardware and its ideal model, which share their parameters.

    Attributes:
      init: `init(key) -> params`.
      model: the ideal forward function, without faults.
      hardware: the forward function that calls the circuit layer by layer.
      answer: `answer(params, x) -> outputs` of the whole circuit, in NumPy.
    """

    init: Callable[[Key], Params]
    model: Forward
    hardware: Forward
    answer: Callable[[Any, np.ndarray], np.ndarray]


def circuit(sizes: tuple[int, int, int], faults: Faults, seed: int) -> Circuit:
    """A network with one hidden layer of tanh units; each seed gives another circuit."""
    net = nl.mlp(list(sizes), activation=nl.activations.tanh())
    inputs, hidden, outputs = sizes
    bars = {
        "hidden1": Crossbar(faults, (inputs, hidden), 2 * seed),
        "output": Crossbar(faults, (hidden, outputs), 2 * seed + 1),
    }
    connections = {name: nl.device(bar, like=_affine) for name, bar in bars.items()}
    activations = {"hidden1": nl.activations.tanh(), "output": nl.activations.identity()}

    def hardware(params: Params, x: Array, propagate: Propagate = feedforward) -> Array:
        for name, connection in connections.items():
            x = propagate(name, connection, activations[name], params[name], x)
        return x

    def answer(params: Any, x: np.ndarray) -> np.ndarray:
        return bars["output"](params["output"], np.tanh(bars["hidden1"](params["hidden1"], x)))

    return Circuit(net.init, net.apply, hardware, answer)


def _affine(params: Params, x: Array) -> Array:
    return x @ params["weight"] + jax.numpy.expand_dims(params["bias"], 0)
