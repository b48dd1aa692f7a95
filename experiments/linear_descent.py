"""Gradient descent of linear units on images, from two starts, beside its law."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax.theory import conditioning

MOMENTS = 60  # at which the loss is looked at, more and more apart
ROUNDING = 1e-15  # of the excess loss at the start, in float64: what lies below is no number


class Descent(NamedTuple):
    """Gradient descent at the best rate, from the slowest mode, which is the worst start, and from zero.

    Attributes:
      inputs: D, without the bias.
      condition: κ of inputs and bias.
      allowed: steps within which theory has the loss reduced as wanted.
      moments: numbers of steps after which the loss was measured.
      measured: excess loss, that above the least, in parts of what it is at the start, [2, moments].
      law: the same by theory.
      taken: steps until it was reduced as wanted, [2].
    """

    inputs: int
    condition: float
    allowed: int
    moments: np.ndarray
    measured: np.ndarray
    law: np.ndarray
    taken: np.ndarray

    @property
    def deviation(self) -> float:
        """Largest distance of the excess loss from its law, in parts of that at the start."""
        return float(np.max(np.abs(self.measured - self.law)))


def descend(x: np.ndarray, labels: np.ndarray, reduction: float) -> Descent:
    """Linear units learn from inputs x, [N, D], at their best rate, until their excess loss is `reduction` times less.

    One unit's targets are all 0, and its weights begin with an error along the slowest mode. Ten others, counted as
    one, begin at zero and learn which label an image has. Call in float64.
    """
    curvatures, modes = np.linalg.eigh(np.asarray(conditioning.hessian(jnp.asarray(x))))
    condition, rate = conditioning.condition_number(curvatures), conditioning.best_rate(curvatures)
    allowed = conditioning.steps(condition, reduction)
    moments = np.r_[0, np.geomspace(1, allowed, MOMENTS).round().astype(int)]

    examples, targets = _condensed(np.c_[x, np.ones(len(x))], np.c_[np.zeros(len(x)), np.eye(10)[labels]])
    start = np.zeros((x.shape[1] + 1, targets.shape[1]))
    start[:, 0] = modes[:, 0]
    errors = modes.T @ (start - np.linalg.solve(examples, targets))
    excess = np.asarray(_walk(*map(jnp.asarray, (examples, targets, start, rate, moments))))
    law = np.transpose([conditioning.excess_loss(curvatures, of_unit, rate, moments) for of_unit in errors.T])

    measured = _of_both(excess)
    # Between moments the logarithm is nearly straight; the worst start's is quite.
    fallen = -np.log(np.maximum(measured, ROUNDING))
    taken = np.array([np.ceil(np.interp(np.log(reduction), along, moments)) for along in fallen])
    return Descent(x.shape[1], condition, allowed, moments, measured, _of_both(law), taken)


def _condensed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As many examples as columns of x, [N, columns], which have the same mean loss at all weights, less the least.

    With x = QR, ‖xw − y‖² is ‖Rw − Qᵀy‖² and what no w can lessen.
    """
    Q, R = np.linalg.qr(x)
    scale = (x.shape[1] / len(x)) ** 0.5  # a mean over fewer
    return scale * R, scale * Q.T @ y


def _of_both(excess: np.ndarray) -> np.ndarray:
    """The first unit's excess loss and the sum of the others', [moments, units], over what they begin with."""
    both = np.stack([excess[:, 0], excess[:, 1:].sum(axis=1)])
    return both / both[:, :1]


@jax.jit
def _walk(x: jax.Array, y: jax.Array, start: jax.Array, rate: jax.Array, moments: jax.Array) -> jax.Array:
    """Losses ½ ⟨(ŷ − y)²⟩ of linear units that begin with weights `start`, [inputs, units]: [moments, units]."""
    network = nl.mlp([x.shape[1], y.shape[1]], activation=nl.activations.identity(), bias=False)
    learner = nl.learner(nl.backprop(nl.supervised(network.apply, nl.losses.half_squared_error)), optax.sgd(rate))
    key = jax.random.key(0)  # unused: backprop draws no random numbers

    def until(state: nl.LearnerState, moment: jax.Array) -> tuple[nl.LearnerState, jax.Array]:
        def step(_: jax.Array, state: nl.LearnerState) -> nl.LearnerState:
            return learner.step(key, state, (x, y))[0]

        state = jax.lax.fori_loop(state.step, moment.astype(state.step.dtype), step, state)
        return state, jnp.mean((network.apply(state.params, x) - y) ** 2, axis=0) / 2

    return jax.lax.scan(until, learner.init(key, {"output": {"weight": start}}), moments)[1]
