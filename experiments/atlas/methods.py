"""The atlas's methods: every estimator of the library, at the settings its documentation advises, and every rule."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import nl_jax as nl
from experiments.atlas import lessons as atlas_lessons
from experiments.atlas.tasks import Task
from experiments.harness.users_own import factory_at
from nl_jax import estimators
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


GRADIENT, NOISE, ONLINE, RULE, YOURS = "gradient", "noise", "online", "local rule", "yours"
FAMILIES = (GRADIENT, NOISE, "feedback", "lagrangian", "equilibrium", ONLINE, RULE)
"""Groups of methods in the order of the map; `ONLINE` ones need a loop over time."""

SETTINGS: dict[str, dict[str, Any]] = {
    "reinforce": {"units": nl.units.gaussian(sigma=0.1)},
    "difference_target_propagation": {"optimizer": optax.sgd(0.1)},
    "predictive_coding": {"num_steps": 50},
    "auxiliary_coordinates": {"num_steps": 50},
    "error_predictive_coding": {"num_steps": 10},
    "primal_dual": {"num_steps": 50},
    "extragradient": {"num_steps": 50},
    "augmented_lagrangian": {"num_outer": 5, "num_inner": 10},
    "admm": {"num_steps": 10},
    "equilibrium_propagation": {"feedback_strength": 0.1},
    "truncated_backprop": {"window": 5},
    "rtrl": {"chunk": 1},
    "snap": {"order": 1},
    "three_factor": {"sigma": 0.1},
}
"""Settings by estimator; the others are made with their defaults."""

VARIANTS: dict[str, tuple[Callable[..., GradientEstimator], dict[str, Any]]] = {
    "weight_perturbation_rank_one": (nl.weight_perturbation, {"directions": nl.directions.rank_one()}),
    "node_perturbation_orthogonal": (nl.node_perturbation, {"directions": nl.directions.orthogonal()}),
    "forward_gradient_nodes": (nl.forward_gradient, {"space": nl.spaces.nodes}),
    "sign_symmetric": (nl.feedback_alignment, {"feedback": nl.feedback.sign_symmetric()}),
    "kolen_pollack": (nl.feedback_alignment, {"feedback": nl.feedback.kolen_pollack(optax.sgd(0.1))}),
    "weight_mirror": (nl.feedback_alignment, {"feedback": nl.feedback.weight_mirror(optax.sgd(0.1))}),
}
"""Estimators of the library at other settings, under names of their own."""


def family(factory: Callable[..., Any]) -> str:
    """Returns an estimator's family: its folder in `nl_jax/estimators`; "gradient" for those that lie in none."""
    folder, *file = factory.__module__.removeprefix(f"{estimators.__name__}.").split(".")
    return folder if file else GRADIENT


def of_library() -> dict[str, Callable[..., GradientEstimator]]:
    """Returns the library's estimators by name: its public factories whose first argument is an objective.

    Factories that need more than `SETTINGS` gives them are left out: they combine other estimators.
    """
    found: dict[str, Callable[..., GradientEstimator]] = {}
    for name in nl.__all__:
        factory = getattr(nl, name)
        if not inspect.isfunction(factory) or not factory.__module__.startswith(f"{estimators.__name__}."):
            continue
        signature = inspect.signature(factory)
        if signature.return_annotation is not GradientEstimator:
            continue
        first, *others = signature.parameters.values()
        needed = {of.name for of in others if of.default is of.empty} - SETTINGS.get(name, {}).keys() - {_SAMPLES}
        if first.name == "objective" and not needed:
            found[name] = factory
    return found


def method(factory: Callable[..., GradientEstimator], settings: Mapping[str, Any], family: str) -> Method:
    """Returns the method of an estimator's factory.

    A factory that takes `num_samples` is told how many directions to draw; one that takes `example` is shown a batch,
    because the weights of a convolution do not tell the shapes of its layers.
    """
    takes = inspect.signature(factory).parameters

    def make(task: Task, samples: int) -> GradientEstimator:
        told: dict[str, Any] = {_SAMPLES: samples} if _SAMPLES in takes else {}
        shown: dict[str, Any] = {"example": task.example} if "example" in takes else {}
        return factory(task.objective, **told, **shown, **settings)

    return Method(make, family, family == ONLINE)


_SAMPLES = "num_samples"


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


OF_THEIR_OWN: dict[str, Method] = {
    "local_losses": Method(
        lambda task, samples: nl.backprop(task.objective), GRADIENT, lesson=atlas_lessons.local_losses
    ),
    "iterative_node_perturbation": Method(
        lambda task, samples: nl.iterative_node_perturbation(task.objective, num_samples=max(1, samples // 4)),
        NOISE,
    ),
    "fzoo": Method(
        lambda task, samples: nl.normalised(nl.weight_perturbation(task.objective, num_samples=samples)), NOISE
    ),
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
"""Methods with an objective, or a number of directions, of their own; and local rules."""

_ALL = {
    **{name: method(factory, SETTINGS.get(name, {}), family(factory)) for name, factory in of_library().items()},
    **{name: method(factory, settings, family(factory)) for name, (factory, settings) in VARIANTS.items()},
    **OF_THEIR_OWN,
}

METHODS = dict(sorted(_ALL.items(), key=lambda item: FAMILIES.index(item[1].family)))
"""All methods by name, family by family."""


def of_user(place: str) -> Method:
    """Returns the user's own method: `module:factory`, where `factory(objective) -> estimator`.

    Raises:
      ExperimentError: if the factory cannot be found.
    """
    return method(factory_at("--estimator", place), {}, YOURS)
