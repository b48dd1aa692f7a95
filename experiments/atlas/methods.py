"""The atlas's methods: every estimator, at the settings its documentation advises."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import nl_jax as nl
from experiments.atlas import lessons as atlas_lessons
from experiments.atlas.tasks import Task
from experiments.harness.users_own import factory_at
from nl_jax.base import GradientEstimator

Make = Callable[[Task, int], GradientEstimator]
"""`make(task, samples) -> estimator` of the task's objective; `samples` is the number of directions drawn."""


class Method(NamedTuple):
    """A method of the atlas.

    Attributes:
      make: makes the estimator.
      family: name of the group of similar methods.
      in_time: whether the method only applies to networks with a loop over time.
      lesson: adapts a task for a method that does not learn from its objective; raises ValueError if that is
        impossible.
    """

    make: Make
    family: str
    in_time: bool = False
    lesson: Callable[[Task], Task] = lambda task: task


def _plain(make: Callable[..., GradientEstimator], family: str, in_time: bool = False, **settings: Any) -> Method:
    return Method(lambda task, samples: make(task.objective, **settings), family, in_time)


def _of_example(make: Callable[..., GradientEstimator], family: str, **settings: Any) -> Method:
    """Returns a method that is shown a batch's shapes: the weights of convolutional tasks do not tell them."""
    return Method(lambda task, samples: make(task.objective, task.example, **settings), family)


def _sampled(make: Callable[..., GradientEstimator], family: str, in_time: bool = False, **settings: Any) -> Method:
    make = functools.partial(make, **settings)
    return Method(lambda task, samples: make(task.objective, num_samples=samples), family, in_time)


def _rule(hidden: Callable[[], nl.rules.Rule] | None) -> Method:
    """Returns a method with a rule for hidden layers; the outputs learn by the delta rule."""

    def make(task: Task, samples: int) -> GradientEstimator:
        del samples
        rules = atlas_lessons.rules_of(task, None if hidden is None else hidden())
        return nl.local_learning(task.objective, rules)

    return Method(make, RULE, lesson=atlas_lessons.by_rules)


def _forward_forward(task: Task, samples: int) -> GradientEstimator:
    del samples
    assert task.widths is not None
    return nl.augment_batches(nl.backprop(task.objective), nl.objectives.contrast(task.widths[-1]))


GRADIENT, NOISE, FEEDBACK = "gradient", "noise", "feedback"
CONSTRAINED, EQUILIBRIUM, ONLINE = "constrained", "equilibrium", "online"
RULE = "local rule"

METHODS: dict[str, Method] = {
    "backprop": _plain(nl.backprop, GRADIENT),
    "backprop_recursion": _plain(nl.backprop_recursion, GRADIENT),
    "lagrangian_backprop": _plain(nl.lagrangian_backprop, GRADIENT),
    "local_losses": Method(
        lambda task, samples: nl.backprop(task.objective), GRADIENT, lesson=atlas_lessons.local_losses
    ),
    "weight_perturbation": _sampled(nl.weight_perturbation, NOISE),
    "weight_perturbation_rank_one": _sampled(nl.weight_perturbation, NOISE, directions=nl.directions.rank_one()),
    "subspace_perturbation": _sampled(nl.subspace_perturbation, NOISE),
    "node_perturbation": _sampled(nl.node_perturbation, NOISE),
    "node_perturbation_orthogonal": _sampled(nl.node_perturbation, NOISE, directions=nl.directions.orthogonal()),
    "iterative_node_perturbation": Method(
        lambda task, samples: nl.iterative_node_perturbation(task.objective, num_samples=max(1, samples // 4)),
        NOISE,
    ),
    "activity_node_perturbation": _sampled(nl.activity_node_perturbation, NOISE),
    "forward_gradient_weights": _sampled(nl.forward_gradient, NOISE, space=nl.spaces.weights),
    "forward_gradient_nodes": _sampled(nl.forward_gradient, NOISE, space=nl.spaces.nodes),
    "reinforce": _sampled(nl.reinforce, NOISE, units=nl.units.gaussian(sigma=0.1)),
    "evolution_strategy": _sampled(nl.evolution_strategy, NOISE),
    "fzoo": Method(
        lambda task, samples: nl.normalised(nl.weight_perturbation(task.objective, num_samples=samples)), NOISE
    ),
    "feedback_alignment": _plain(nl.feedback_alignment, FEEDBACK),
    "sign_symmetric": _plain(nl.feedback_alignment, FEEDBACK, feedback=nl.feedback.sign_symmetric()),
    "kolen_pollack": _plain(nl.feedback_alignment, FEEDBACK, feedback=nl.feedback.kolen_pollack(optax.sgd(0.1))),
    "weight_mirror": _plain(nl.feedback_alignment, FEEDBACK, feedback=nl.feedback.weight_mirror(optax.sgd(0.1))),
    "direct_feedback_alignment": _plain(nl.direct_feedback_alignment, FEEDBACK),
    "target_propagation": _of_example(nl.difference_target_propagation, FEEDBACK, optimizer=optax.sgd(0.1)),
    "predictive_coding": _plain(nl.predictive_coding, CONSTRAINED, num_steps=50),
    "error_predictive_coding": _plain(nl.error_predictive_coding, CONSTRAINED, num_steps=10),
    "fixed_prediction": _plain(nl.fixed_prediction, CONSTRAINED),
    "zero_divergence": _plain(nl.zero_divergence, CONSTRAINED),
    "auxiliary_coordinates": _plain(nl.auxiliary_coordinates, CONSTRAINED),
    "primal_dual": _plain(nl.primal_dual, CONSTRAINED, num_steps=50),
    "extragradient": _plain(nl.extragradient, CONSTRAINED, num_steps=50),
    "augmented_lagrangian": _plain(nl.augmented_lagrangian, CONSTRAINED, num_outer=5, num_inner=10),
    "admm": _plain(nl.admm, CONSTRAINED, num_steps=10),
    "equilibrium_propagation": _plain(nl.equilibrium_propagation, EQUILIBRIUM, feedback_strength=0.1),
    "contrastive_hebbian": _plain(nl.contrastive_hebbian, EQUILIBRIUM),
    "dual_propagation": _plain(nl.dual_propagation, EQUILIBRIUM),
    "truncated_backprop": _plain(nl.truncated_backprop, ONLINE, True, window=5),
    "rtrl": _plain(nl.rtrl, ONLINE, True),
    "snap": _plain(nl.snap, ONLINE, True, order=1),
    "uoro": _sampled(nl.uoro, ONLINE, True),
    "e_prop": _plain(nl.e_prop, ONLINE, True),
    "rflo": _plain(nl.rflo, ONLINE, True),
    "three_factor": _sampled(nl.three_factor, ONLINE, True, sigma=0.1),
    "forward_forward": Method(_forward_forward, RULE, lesson=atlas_lessons.forward_forward),
    "delta": _rule(None),
    "hebb": _rule(nl.rules.hebb),
    "oja": _rule(nl.rules.oja),
    "sanger": _rule(nl.rules.sanger),
    "subspace": _rule(nl.rules.subspace),
    "bcm": _rule(nl.rules.bcm),
    "instar": _rule(nl.rules.instar),
    "competitive": _rule(nl.rules.competitive),
    "spherical": _rule(nl.rules.spherical),
    "soft_hebb": _rule(nl.rules.soft_hebb),
}


def of_user(place: str) -> Method:
    """Returns the user's own method: `module:factory`, where `factory(objective) -> estimator`.

    Raises:
      ExperimentError: if the factory cannot be found.
    """
    return _plain(factory_at("--estimator", place), "yours")
