"""Small recurrent networks for temporal tasks, and the rules that can train each of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import nl_jax as nl
from experiments.harness.temporal_tasks import Task
from nl_jax.base import Array, Forward, Key, Objective, Params, Propagate

Make = Callable[[Objective], nl.GradientEstimator]

SAMPLES = 4  # noisy samples of each example per update, for rules that explore by noise
WINDOW = 5  # steps of truncated backprop

RULES: dict[str, Make] = {
    "backprop through time": nl.backprop,
    "truncated backprop": lambda objective: nl.truncated_backprop(objective, window=WINDOW),
    "RTRL": nl.rtrl,
    "SnAp-1": lambda objective: nl.snap(objective, order=1),
    "UORO": lambda objective: nl.uoro(objective, num_samples=SAMPLES),
    "e-prop, symmetric": nl.e_prop,
    "e-prop, random": lambda objective: nl.e_prop(objective, feedback=nl.feedback.random()),
    "RFLO": nl.rflo,
    "feedback alignment": nl.feedback_alignment,
    "node perturbation": lambda objective: nl.node_perturbation(objective, num_samples=SAMPLES),
    "weight perturbation": lambda objective: nl.weight_perturbation(objective, num_samples=SAMPLES),
    "three-factor": lambda objective: nl.three_factor(objective, sigma=0.1, num_samples=SAMPLES),
}
OF_SPIKES = ("backprop through time", "e-prop, symmetric", "e-prop, random")


class Net(NamedTuple):
    """A network for one task."""

    init: Callable[[Key], Params]
    apply: Forward


def leaky(task: Task, units: int) -> Net:
    """Leaky rate units (tanh); the read-out takes the last state, on MNIST-1D the mean over time."""
    cell = nl.cells.leaky(units, rate=0.2 if task.name == "mnist_1d" else 0.5)
    return _net(cell, task, nl.cells.mean if task.name == "mnist_1d" else nl.cells.last)


def spiking(task: Task, units: int) -> Net:
    """Adaptive integrate-and-fire units; the read-out takes their spikes' mean over time."""
    cell = nl.cells.lif(units, decay=0.9, adaptation=0.2, adaptation_decay=0.95)
    return _net(cell, task, nl.cells.mean)


def gru(task: Task, units: int) -> Net:
    """The network of Greydanus (2020): one GRU forwards and one backwards in time; the read-out takes all states."""
    uniform = _uniform(units**-0.5)  # as in PyTorch, which the paper uses
    cell = nl.cells.gru(units, weight_init=uniform, recurrent_init=uniform)
    inputs, states = task.channels, 2 * units * task.steps

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 3)
        there, back = (cell.init(k, inputs) for k in keys[:2])
        output = {
            "weight": _uniform(states**-0.5)(keys[2], (states, task.num_outputs)),
            "bias": jnp.zeros(task.num_outputs),
        }
        return {"there": there, "back": back, "output": output}

    def apply(params: Params, xs: Array, propagate: Propagate = nl.propagation.feedforward) -> Array:
        by_time = jnp.swapaxes(xs, 0, 1)

        def run(name: str, sequence: Array) -> Array:
            def step(carry: Any, x: Array, propagate: Propagate) -> tuple[Any, Array]:
                return cell.step(params[name], carry, x, propagate)

            return nl.scan(name, step, cell.start(len(xs)), sequence, propagate)[1]

        both = jnp.concatenate([run("there", by_time), run("back", by_time[::-1])[::-1]], axis=-1)
        flat = jnp.swapaxes(both, 0, 1).reshape(len(xs), states)
        return propagate("output", _affine, nl.activations.identity(), params["output"], flat)

    return Net(init, apply)


NETWORKS: dict[str, Callable[[Task, int], Net]] = {"leaky": leaky, "spiking": spiking, "GRU": gru}


def objective(net: Net, task: Task) -> Objective:
    """Half the squared error for a number, cross-entropy for classes."""
    if task.num_outputs > 1:
        return nl.supervised(net.apply, nl.losses.cross_entropy)
    return nl.supervised(net.apply, lambda outputs, targets: (outputs[:, 0] - targets) ** 2 / 2)


def error(net: Net, task: Task) -> Callable[[Params, tuple[Array, Array]], Array]:
    """Mean squared error for numbers, fraction of wrong answers for classes; NaN if outputs are not finite."""

    def of(params: Params, batch: tuple[Array, Array]) -> Array:
        outputs = net.apply(params, batch[0])
        if task.num_outputs == 1:
            return jnp.mean((outputs[:, 0] - batch[1]) ** 2)
        return jnp.where(jnp.isfinite(outputs).all(), jnp.mean(jnp.argmax(outputs, axis=-1) != batch[1]), jnp.nan)

    return of


def _net(cell: nl.cells.Cell, task: Task, read: Any) -> Net:
    return Net(*nl.recurrent(cell, task.channels, task.num_outputs, read=read))


def _uniform(bound: float) -> Callable[..., Array]:
    """An initialiser that is uniform in [−bound, bound]."""

    def draw(key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def _affine(params: Params, x: Array) -> Array:
    return x @ params["weight"] + jnp.expand_dims(params["bias"], 0)
