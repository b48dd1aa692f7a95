"""Measures the variance of both perturbations in random networks, beside the law of each network."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.harness.random_networks import CASES, GAUSSIAN, draw, network, second_moment
from nl_jax.base import Objective
from nl_jax.theory import perturbation

SPACES: dict[str, Callable[[Objective], nl.spaces.Space]] = {"weights": nl.spaces.weights, "nodes": nl.spaces.nodes}


class Sampled(NamedTuple):
    """Estimates in one space, for networks of one kind, depth and width.

    Attributes:
      squares: ‖ĝ − g‖²/‖g‖², [networks, estimates].
      cosines: between ĝ and g, [networks, estimates].
      law: expected value of the squares for each network, [networks].
    """

    squares: np.ndarray
    cosines: np.ndarray
    law: np.ndarray

    @property
    def deviation(self) -> float:
        """Deviation of the squares' mean from the law, in standard errors."""
        ratios = (self.squares / self.law[:, None]).ravel()
        return float((ratios.mean() - 1) / (ratios.std(ddof=1) / ratios.size**0.5))

    @property
    def log_variance(self) -> tuple[float, float]:
        """Mean over networks of the log of the relative variance, and its standard error."""
        logs = np.log(self.squares.mean(axis=1))
        return float(logs.mean()), float(logs.std(ddof=1) / len(logs) ** 0.5)


class Measurement(NamedTuple):
    """Results for a kind of network at one depth and width."""

    case: str
    space: str
    depth: int
    width: int
    sampled: Sampled

    @property
    def linear_law(self) -> float:
        """Relative variance if all components were alike: the number of weights or of nodes, plus 1."""
        components = self.depth * self.width * (self.width if self.space == "weights" else 1)
        return perturbation.relative_variance(perturbation.independent(components, kurtosis=GAUSSIAN), 1)


def measure(depth: int, width: int, networks: int, num_estimates: int) -> list[Measurement]:
    """Measures all kinds of networks at once, so that one program is compiled for each size.

    Args:
      depth: number of layers with weights.
      width: units per layer.
      networks: random networks of each kind.
      num_estimates: estimates of each gradient.
    """
    activations = [case.activation for case in CASES.values()]

    def estimates(kind: jax.Array, key: jax.Array, params: Any, batch: Any) -> Any:
        forward = network(lambda nu: jax.lax.switch(kind, activations, nu))
        objective = nl.supervised(forward, nl.losses.half_squared_error)
        exact, _, _ = nl.backprop(objective).estimate(key, (), params, batch)

        def one(estimator: nl.GradientEstimator, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            estimate, _, _ = estimator.estimate(key, estimator.init(key, params), params, batch)
            off = optax.tree.norm(optax.tree.sub(estimate, exact), squared=True)
            return off / optax.tree.norm(exact, squared=True), nl.diagnostics.cosine(estimate, exact)

        keys = jax.random.split(key, num_estimates)
        estimators = {name: nl.forward_gradient(objective, space=space) for name, space in SPACES.items()}
        sampled = {space: jax.lax.map(functools.partial(one, made), keys) for space, made in estimators.items()}
        return sampled, second_moment(forward, params, batch)

    drawn = [draw(case, depth, width, networks) for case in CASES.values()]
    params, batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *drawn)
    kinds = jnp.repeat(jnp.arange(len(CASES)), networks)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(depth), width), len(kinds))
    sampled, s = jax.jit(jax.vmap(estimates))(kinds, keys, params, batch)
    laws = {"weights": np.full(len(kinds), depth * width**2 + 1.0), "nodes": np.asarray(s) - 1}
    return [
        Measurement(case, space, depth, width, Sampled(*(np.asarray(of)[mine] for of in (*values, laws[space]))))
        for case, mine in zip(CASES, np.split(np.arange(len(kinds)), len(CASES)), strict=True)
        for space, values in sampled.items()
    ]


def grid(found: Sequence[Measurement]) -> tuple[list[int], list[int]]:
    """All depths and all widths, as measured."""
    return list(dict.fromkeys(one.depth for one in found)), list(dict.fromkeys(one.width for one in found))


def of(found: Sequence[Measurement], **wanted: Any) -> list[Measurement]:
    """The measurements whose fields have these values."""
    return [one for one in found if all(getattr(one, name) == value for name, value in wanted.items())]
