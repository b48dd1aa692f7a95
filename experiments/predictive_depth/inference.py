"""Number of evaluations of predictive coding's inference in deep networks, in axons (activity) and in errors."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.data import digits
from experiments.harness.failure import ExperimentError
from experiments.harness.sweep import first_at_most
from nl_jax.base import Array, Forward, Params

VARIABLES: Mapping[str, Callable[..., nl.GradientEstimator]] = {
    "axons": nl.predictive_coding,
    "errors": nl.error_predictive_coding,
}
"""Estimator by the variables in which inference descends: predictive coding and ePC."""

AT_REST = 1e-9  # residual, relative to the initial one, of the equilibrium that is the reference


class Descent(NamedTuple):
    """Inference in one kind of variables on one network; arrays are [rates, seeds, moments].

    Attributes:
      network: "plain" or "residual".
      variables: "axons" or "errors".
      rates: step sizes of inference, [rates].
      steps: numbers of inference steps, [moments].
      residual: ‖∂F/∂x‖ relative to that at the feedforward axons.
      error: ‖g − g*‖/‖g*‖ of the layer where it is largest, with g* = ∂F/∂W at the equilibrium.
    """

    network: str
    variables: str
    rates: np.ndarray
    steps: np.ndarray
    residual: np.ndarray
    error: np.ndarray

    def evaluations(self, values: np.ndarray, target: float) -> np.ndarray:
        """Evaluations after which values stay at or below the target, [rates, seeds]; infinite if they never do."""
        known = np.where(np.isfinite(values), values, np.inf)
        from_now_on = np.maximum.accumulate(known[..., ::-1], axis=-1)[..., ::-1]
        return 2 * first_at_most(target, from_now_on, self.steps) + 3

    def best(self, values: np.ndarray, target: float) -> int:
        """Index of the rate with which all seeds reach the target soonest, on average."""
        return int(np.argmin(self.evaluations(values, target).mean(axis=-1)))


def networks(layers: int, units: int) -> dict[str, Any]:
    """A plain chain and μPC's residual network, both tanh, with `layers` layers of weights."""
    tanh = nl.activations.tanh()
    return {
        "plain": nl.mlp([64, *[units] * (layers - 1), 10], activation=tanh, bias=False),
        "residual": nl.residual(64, units, 10, layers=layers, activation=tanh),
    }


def descents(
    layers: int, units: int, rates: Sequence[float], most: Mapping[str, int], *, seeds: int, examples: int
) -> list[Descent]:
    """Infers on digits from the feedforward axons, at every rate, up to the most steps, in both kinds of variables.

    Raises:
      ExperimentError: if inference in errors converges at no rate, so that there is no reference.
    """
    with jax.enable_x64(True):
        train = digits().train
        order = np.random.default_rng(0).permutation(len(train.labels))[: seeds * examples].reshape(seeds, examples)
        batches = jnp.asarray(train.images[order], float), jax.nn.one_hot(train.labels[order], 10, dtype=float)
        found = []
        for name, network in networks(layers, units).items():
            params = drawn(network, seeds)
            infer = {v: functools.partial(_inference(network.apply, make), params, batches)
                     for v, make in VARIABLES.items()}  # fmt: skip
            first = np.asarray(infer["axons"](0.0, 1)[1])
            at_rest = _equilibrium(name, infer["errors"], first, rates, most["errors"])
            for variables, run in infer.items():
                found.append(_descent(name, variables, run, rates, most[variables], first, at_rest))
        return found


def drawn(network: Any, seeds: int) -> Params:
    """Initial weights in float64, [seeds, …], N(0, 1) or N(0, 1/fan in), as the network expects.

    They are drawn on the host: compiling random numbers takes longer than inference.
    """
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    scaling = getattr(network, "scaling", None)

    def weight(shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(size=(seeds, *shape)) * (shape[0] ** -0.5 if scaling is None else scaling.block.deviation)

    return jax.tree.map(lambda leaf: jnp.asarray(weight(leaf.shape)), shapes)


def _inference(forward: Forward, make: Callable[..., nl.GradientEstimator]) -> Callable[..., Any]:
    """`run(params, batches, rate, steps) -> (∂F/∂W, ‖∂F/∂x‖)` for all seeds."""
    objective = nl.supervised(forward, nl.losses.half_squared_error)

    @jax.jit
    def run(params: Params, batches: Any, rate: Array, steps: Array) -> tuple[Params, Array]:
        estimator = make(objective, optimizer=optax.sgd(rate), num_steps=steps, tolerance=1e-13)

        def one(params: Params, batch: Any) -> tuple[Params, Array]:
            grads, _, info = estimator.estimate(jax.random.key(0), (), params, batch)
            return grads, jnp.sqrt(sum(norm**2 for norm in info.residuals.dual.values()))

        return jax.vmap(one)(params, batches)

    return lambda params, batches, rate, steps: run(params, batches, jnp.asarray(rate, float), jnp.int32(steps))


def _equilibrium(name: str, infer: Any, first: np.ndarray, rates: Sequence[float], steps: int) -> list[np.ndarray]:
    """∂F/∂W by layer, [seeds, …], at the rate with the smallest residual."""
    runs = [infer(rate, steps) for rate in rates]
    left = [np.nan_to_num(np.max(residual / first), nan=np.inf) for _, residual in runs]
    least = int(np.argmin(left))
    if not left[least] < AT_REST:
        raise ExperimentError(
            f"the {name} network does not come to rest in {steps} steps: the least residual is {left[least]:.1e} of "
            "the first; add smaller --inference-rates or raise --steps-in-errors"
        )
    return _layers(runs[least][0])


def _layers(grads: Params) -> list[np.ndarray]:
    """Gradients by layer; the layers of a loop are separated."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    return [part for leaf in leaves for part in ([leaf] if leaf.ndim == 3 else np.moveaxis(leaf, 1, 0))]


def _descent(
    name: str, variables: str, infer: Any, rates: Sequence[float], most: int, first: np.ndarray, rest: list[np.ndarray]
) -> Descent:
    steps = np.unique(np.geomspace(1, most, int(2 * np.log2(most)) + 1).round().astype(int))
    shape = len(rates), len(first), len(steps)
    residual, error = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, rate in enumerate(tqdm(rates, desc=f"{name}, {variables}", unit="rate", leave=False)):
        for k, taken in enumerate(steps):
            grads, left = infer(rate, int(taken))
            residual[i, :, k] = left / first
            off = [_norms(g - at_rest) / _norms(at_rest) for g, at_rest in zip(_layers(grads), rest, strict=True)]
            error[i, :, k] = np.max(off, axis=0)
            if not np.isfinite(residual[i, :, k]).any():
                break  # a diverged run does not recover
    return Descent(name, variables, np.asarray(rates), steps, residual, error)


def _norms(of_seeds: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(of_seeds**2, axis=(1, 2)))
