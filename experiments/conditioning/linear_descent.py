"""Gradient descent of linear units on images from two initialisations, compared with theory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax.theory import conditioning

MOMENTS = 60  # measurements of the loss, at increasing intervals
ROUNDING = 1e-15  # of the initial excess loss, in float64: smaller values are rounding errors


class Descent(NamedTuple):
    """Gradient descent at the best rate, from the slowest mode, which is the worst initialisation, and from zero.

    Attributes:
      inputs: D, without the bias.
      condition: κ of inputs and bias.
      allowed: steps within which theory predicts the wanted reduction of the loss.
      moments: numbers of steps after which the loss was measured.
      measured: excess loss above the minimum, relative to the initial excess, [2, moments].
      law: the same by theory.
      taken: steps until the wanted reduction was reached, [2].
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
        """Largest difference between excess loss and theory, relative to the initial excess."""
        return float(np.max(np.abs(self.measured - self.law)))


def descend(x: np.ndarray, labels: np.ndarray, reduction: float) -> Descent:
    """Trains linear units on inputs x, [N, D], at their best rate, until the excess loss is `reduction` times smaller.

    One unit's targets are all 0, and its initial weights differ from the optimum along the slowest mode. Ten other
    units, counted as one, begin at zero and learn the label of an image. Call in float64.
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
    # Between moments log loss is nearly linear in the steps; from the worst initialisation it is exactly linear.
    fallen = -np.log(np.maximum(measured, ROUNDING))
    taken = np.array([np.ceil(np.interp(np.log(reduction), along, moments)) for along in fallen])
    return Descent(x.shape[1], condition, allowed, moments, measured, _of_both(law), taken)


def _condensed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer examples, one for each column of x, [N, columns], with the same mean loss minus its minimum at all weights.

    With x = QR, ‖xw − y‖² is ‖Rw − Qᵀy‖² plus a constant.
    """
    Q, R = np.linalg.qr(x)
    scale = (x.shape[1] / len(x)) ** 0.5  # the mean is over fewer examples
    return scale * R, scale * Q.T @ y


def _of_both(excess: np.ndarray) -> np.ndarray:
    """Excess loss of the first unit and sum of the others', [moments, units], relative to the initial values."""
    both = np.stack([excess[:, 0], excess[:, 1:].sum(axis=1)])
    return both / both[:, :1]


@jax.jit
def _walk(x: jax.Array, y: jax.Array, start: jax.Array, rate: jax.Array, moments: jax.Array) -> jax.Array:
    """Losses ½ ⟨(ŷ − y)²⟩, [moments, units], of linear units with initial weights `start`, [inputs, units]."""
    network = nl.mlp([x.shape[1], y.shape[1]], activation=nl.activations.identity(), bias=False)
    learner = nl.learner(nl.backprop(nl.supervised(network.apply, nl.losses.half_squared_error)), optax.sgd(rate))
    key = jax.random.key(0)  # unused: backprop draws no random numbers

    def until(state: nl.LearnerState, moment: jax.Array) -> tuple[nl.LearnerState, jax.Array]:
        def step(_: jax.Array, state: nl.LearnerState) -> nl.LearnerState:
            return learner.step(key, state, (x, y))[0]

        state = jax.lax.fori_loop(state.step, moment.astype(state.step.dtype), step, state)
        return state, jnp.mean((network.apply(state.params, x) - y) ** 2, axis=0) / 2

    return jax.lax.scan(until, learner.init(key, {"output": {"weight": start}}), moments)[1]
