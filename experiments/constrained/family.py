"""Defines the solvers and relatives of backprop's Lagrangian for `experiments.constrained`.

Each member makes an estimator, with settings that all parts of the experiment share.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

import nl_jax as nl
from nl_jax.base import Array, Forward, Objective

ALWAYS_ALL = 0.0
"""The tolerance at which a solver always takes all its steps."""

WEAK = 0.1
"""Feedback strength γ of equilibrium networks; with feedback as strong as the forward weights, some of these networks
have several equilibria."""


class Teaching(NamedTuple):
    """The inputs from which a member makes its estimator."""

    objective: Objective
    optimizer: optax.GradientTransformation
    """The learner's optimizer."""


class Member(NamedTuple):
    """One estimator of the family.

    Attributes:
      label: label in tables and figures.
      make: `make(teaching) -> estimator`.
      answers: `answers(forward) -> forward`, returns the function with which the trained network predicts.
    """

    label: str
    make: Callable[[Teaching], nl.GradientEstimator]
    answers: Callable[[Forward], Forward] = lambda forward: forward


class Solver(NamedTuple):
    """An iterative solver.

    Attributes:
      label: label in tables and figures.
      make: `make(objective, iterations) -> estimator`.
      gradient_of: `gradient_of(objective) -> objective`, returns the objective whose gradient the solver approaches.
      allowed: allowed relative error of the estimate to that gradient after the most iterations.
    """

    label: str
    make: Callable[[Objective, int | Array], nl.GradientEstimator]
    allowed: float
    gradient_of: Callable[[Objective], Objective] = lambda objective: objective


def descent(penalty: float | Array = 1.0) -> optax.GradientTransformation:
    """Returns Nesterov descent for F/μ, whose curvature is bounded for μ ≥ 1 and grows as 1/μ for μ < 1."""
    return optax.sgd(0.1 * jax.numpy.minimum(penalty, 1.0), momentum=0.9, nesterov=True)


def predictive_coding(
    objective: Objective, penalty: float | Array, num_steps: int | Array, tolerance: float = ALWAYS_ALL
) -> nl.GradientEstimator:
    """Returns predictive coding with penalty μ and accelerated inference."""
    return nl.predictive_coding(
        objective, penalty=penalty, optimizer=descent(penalty), num_steps=num_steps, tolerance=tolerance
    )


SOLVERS: dict[str, Solver] = {
    "primal_dual": Solver(
        # larger steps than the defaults, which must also work for large weights
        "primal–dual, damped",
        lambda f, k: nl.primal_dual(f, step_size=0.2, multiplier_step_size=0.2, num_steps=k, tolerance=ALWAYS_ALL),
        1e-2,
    ),
    "extragradient": Solver(
        "extragradient, damped",
        lambda f, k: nl.extragradient(f, step_size=0.15, damping=0.5, num_steps=k, tolerance=ALWAYS_ALL),
        1e-2,
    ),
    "augmented_lagrangian": Solver(
        "augmented Lagrangian, 20 inner steps",
        lambda f, k: nl.augmented_lagrangian(
            f,
            penalty=10.0,
            optimizer=optax.sgd(0.01, momentum=0.9, nesterov=True),
            num_inner=20,
            num_outer=k,
            tolerance=ALWAYS_ALL,
        ),
        1e-2,
    ),
    "admm": Solver("ADMM", lambda f, k: nl.admm(f, penalty=2.0, num_steps=k, tolerance=ALWAYS_ALL), 1e-2),
    "predictive_coding": Solver("predictive coding, μ = 100", lambda f, k: predictive_coding(f, 100.0, k), 1e-1),
    "fixed_prediction": Solver(
        "fixed prediction, rate ½", lambda f, k: nl.fixed_prediction(f, rate=0.5, num_steps=k), 1e-6
    ),
    "equilibrium_propagation": Solver(
        "equilibrium propagation, γ = 0.1",
        lambda f, k: nl.equilibrium_propagation(
            f, nudge=nl.nudges.symmetric(0.05), feedback_strength=WEAK, num_steps=k, tolerance=ALWAYS_ALL
        ),
        5e-2,
        lambda objective: nl.at_equilibrium(objective, feedback_strength=WEAK),
    ),
}

GROUPS: dict[str, dict[str, Member]] = {
    "exact": {
        "backprop": Member("backprop", lambda t: nl.backprop(t.objective)),
        "lagrangian_backprop": Member("Lagrangian, by substitution", lambda t: nl.lagrangian_backprop(t.objective)),
        "fixed_prediction": Member("fixed prediction", lambda t: nl.fixed_prediction(t.objective)),
        "zero_divergence": Member("Z-IL", lambda t: nl.zero_divergence(t.objective)),
    },
    "multipliers": {
        "primal_dual": Member("primal–dual, 40 steps", lambda t: SOLVERS["primal_dual"].make(t.objective, 40)),
        "extragradient": Member("extragradient, 40 steps", lambda t: SOLVERS["extragradient"].make(t.objective, 40)),
        "augmented_lagrangian": Member(
            "augmented Lagrangian, 4 × 20", lambda t: SOLVERS["augmented_lagrangian"].make(t.objective, 4)
        ),
        "admm": Member("ADMM, 4 sweeps", lambda t: SOLVERS["admm"].make(t.objective, 4)),
    },
    "a penalty alone": {
        "predictive_coding": Member("predictive coding, μ = 1", lambda t: predictive_coding(t.objective, 1.0, 30)),
        "auxiliary_coordinates": Member(
            "auxiliary coordinates, μ to 100",
            lambda t: nl.auxiliary_coordinates(
                t.objective, penalties=(1, 10, 100), optimizer=descent(), num_steps=20, tolerance=ALWAYS_ALL
            ),
        ),
    },
    "networks at rest": {
        "equilibrium_propagation": Member(
            "equilibrium propagation, γ = 0.1",
            lambda t: SOLVERS["equilibrium_propagation"].make(t.objective, 40),
            lambda forward: nl.at_equilibrium(forward, feedback_strength=WEAK, num_steps=100),
        ),
        "contrastive_hebbian": Member(
            "contrastive Hebbian, γ = 0.1", lambda t: nl.contrastive_hebbian(t.objective, num_steps=20)
        ),
    },
    "feedback": {
        "random": Member("random", lambda t: nl.feedback_alignment(t.objective)),
        "direct": Member("direct", lambda t: nl.direct_feedback_alignment(t.objective)),
        "sign_symmetric": Member(
            "sign-symmetric", lambda t: nl.feedback_alignment(t.objective, feedback=nl.feedback.sign_symmetric())
        ),
        "kolen_pollack": Member(
            "Kolen–Pollack",
            lambda t: nl.feedback_alignment(t.objective, feedback=nl.feedback.kolen_pollack(t.optimizer)),
        ),
        "weight_mirror": Member(
            "weight mirror",
            lambda t: nl.feedback_alignment(
                t.objective,
                feedback=nl.feedback.weight_mirror(optax.chain(optax.add_decayed_weights(1.0), optax.sgd(0.02))),
            ),
        ),
        "target_propagation": Member(
            "difference target propagation",
            lambda t: nl.difference_target_propagation(t.objective, optimizer=optax.adam(1e-2)),
        ),
    },
}

MEMBERS: dict[str, Member] = {name: member for group in GROUPS.values() for name, member in group.items()}
EXACT = tuple(name for name in GROUPS["exact"] if name != "backprop")
