"""Trains small networks, each by a random rule, and infers the rule from what is observed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import nl_jax as nl
from nl_jax.base import Batch, Key, Params
from nl_jax.evaluation.diagnostics import Trajectory, identify

NETWORK = nl.mlp([4, 5, 2], activation=nl.activations.tanh())
OBJECTIVE = nl.supervised(NETWORK.apply, nl.losses.half_squared_error)
EXAMPLES = 5
RATE = 0.1
"""Learning rate; the noise is scaled relative to it."""


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    candidates: tuple[str, ...]
    steps: int
    unobserved: float
    strongest: float
    num_samples: int
    noise_known: bool


def _of_inputs(estimator: nl.GradientEstimator) -> nl.GradientEstimator:
    """Adapts a rule without targets to batches of (inputs, targets): it receives the inputs only."""

    def estimate(key: Key, state: Any, params: Params, batch: Batch) -> tuple[Params, Any, nl.Info]:
        return estimator.estimate(key, state, params, batch[0])

    return nl.GradientEstimator(estimator.init, estimate)


CANDIDATES: dict[str, nl.GradientEstimator] = {
    "backprop": nl.backprop(OBJECTIVE),
    "feedback alignment": nl.feedback_alignment(OBJECTIVE),
    "node perturbation": nl.node_perturbation(OBJECTIVE),
    "weight perturbation": nl.weight_perturbation(OBJECTIVE),
    "Oja’s rule": _of_inputs(nl.local_learning(NETWORK.apply, nl.rules.oja())),
}


def case(key: Key, settings: Settings) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Trains a network by a random rule; returns (posterior probabilities, index of the rule, strength)."""
    which_key, own_key, noise_key, strength_key, feedback_key, ask_key = jax.random.split(key, 6)
    which = jax.random.randint(which_key, (), 0, len(settings.candidates))
    known = {name: _with_state(CANDIDATES[name], feedback_key) for name in settings.candidates}
    branches = [_trained(made, settings) for made in known.values()]
    trajectory, power = jax.lax.switch(which, branches, own_key)
    strength = settings.strongest * jax.random.uniform(strength_key)
    sigma = RATE * jnp.sqrt(power) / strength
    leaves, tree = jax.tree.flatten(trajectory.change)
    keys = jax.random.split(noise_key, len(leaves))
    read = [x + sigma * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    hidden = jax.tree.map(
        lambda x, seen: jnp.where(seen, x, jnp.nan), jax.tree.unflatten(tree, read), trajectory.observed
    )
    found = identify(
        trajectory._replace(change=hidden), known, ask_key, noise=sigma if settings.noise_known else None,
        num_samples=settings.num_samples,
    )  # fmt: skip
    return jnp.stack([found.posterior[name] for name in settings.candidates]), which, strength


def _with_state(estimator: nl.GradientEstimator, key: Key) -> nl.GradientEstimator:
    """The estimator with known feedback weights: `init` always returns the state that it draws from `key`."""
    return estimator._replace(init=lambda _, params: estimator.init(key, params))


def _trained(estimator: nl.GradientEstimator, settings: Settings) -> Callable[[Key], tuple[Trajectory, jax.Array]]:
    """A function that returns a network's noiseless trajectory by one rule, and Σ E‖ĝ‖² of the observed weights."""

    def trained(key: Key) -> tuple[Trajectory, jax.Array]:
        init_key, teacher_key, data_key, unit_key, step_key = jax.random.split(key, 5)
        inputs = jax.random.normal(data_key, (settings.steps, EXAMPLES, 4))
        teacher = NETWORK.init(teacher_key)
        targets = jax.vmap(lambda x: 3 * NETWORK.apply(teacher, x))(inputs)
        units = jax.random.bernoulli(unit_key, 1 - settings.unobserved, (5,)).at[0].set(True)  # at least one
        one = jax.tree.map(lambda w: jnp.ones(w.shape, bool), teacher)
        one["hidden1"] = {"weight": jnp.broadcast_to(units[None], (4, 5)), "bias": units}
        one["output"]["weight"] = jnp.broadcast_to(units[:, None], (5, 2))

        def step(params: Params, given: tuple[Key, Batch]) -> tuple[Params, tuple[Params, Params, jax.Array]]:
            key, batch = given
            state = estimator.init(key, params)
            several = jax.vmap(lambda k: estimator.estimate(k, state, params, batch)[0])(jax.random.split(key, 100))
            squares = jax.tree.map(lambda g, seen: jnp.sum(jnp.where(seen[None], g, 0) ** 2) / len(g), several, one)
            change = jax.tree.map(lambda g: -RATE * g[0], several)
            return optax.apply_updates(params, change), (params, change, optax.tree.sum(squares))

        keys = jax.random.split(step_key, settings.steps)
        _, (params, change, squares) = jax.lax.scan(step, NETWORK.init(init_key), (keys, (inputs, targets)))
        observed = jax.tree.map(lambda seen: jnp.broadcast_to(seen[None], (settings.steps, *seen.shape)), one)
        return Trajectory(params, (inputs, targets), change, observed), jnp.sum(squares)

    return trained
