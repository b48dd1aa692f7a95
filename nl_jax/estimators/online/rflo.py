"""Random feedback local online learning, RFLO (Murray 2019)."""

from nl_jax.base import GradientEstimator, Objective
from nl_jax.estimators.feedback import weights as feedbacks
from nl_jax.estimators.feedback.weights import Feedback
from nl_jax.estimators.online.e_prop import traced

_RANDOM = feedbacks.random()


def rflo(objective: Objective, *, feedback: Feedback = _RANDOM, loop: str = "time") -> GradientEstimator:
    """Combines local traces and random feedback, for leaky rate units (Murray 2019, eq. 8–10).

        p_ij ← (1 − α) p_ij + α f'(u_j) x_i,   ∂L/∂W_ij ≈ Σ_t (B e_t)_j p_ij

    for h_t = (1 − α) h_{t−1} + α f(u_t), u = W x + U h_{t−1} + b, the cell `nl.cells.leaky`. The traces are those of
    `e_prop` for this cell, and the error e reaches it through fixed random weights. For cells with another state the
    rule is `e_prop` with random feedback.

    Args:
      objective: a per-example objective that takes `propagate`, whose program has an `nl.scan` of this name.
      feedback: B, by default drawn once and kept.
      loop: the loop's name.

    Returns:
      An estimator with the feedback's state, and with `e_prop`'s memory and evaluations.

    Raises:
      ValueError: as for `e_prop`.
    """
    if feedback is None:
        raise ValueError("feedback must be one of nl.feedback, such as nl.feedback.random(); without it use e_prop")
    return traced("rflo", objective, feedback, loop)
