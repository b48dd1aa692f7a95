"""The atlas's tasks: data, network and error measure."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nl_jax as nl
from experiments.harness import data, temporal_networks, temporal_tasks
from experiments.harness.sweep import with_validation
from nl_jax.base import Array, Forward, Key, Params

Batch = tuple[Array, Array]


class Anchor(NamedTuple):
    """A published result of backprop on the task's network.

    Attributes:
      error: the error it reached, with all training examples.
      updates: the number of updates it trained for; None if unknown.
    """

    error: float
    updates: int | None = None


_GREYDANUS = functools.partial(Anchor, updates=6000)
"""Of Greydanus (2020): networks trained on all 4,000 examples for 6,000 updates."""


class Task(NamedTuple):
    """A network with training, validation and test examples, each (inputs, targets).

    Attributes:
      title: title in figures.
      init, apply: the network's initialiser and forward function.
      objective: the loss of each example; for rules without a loss, the program they learn by.
      error: `error(params, batch) -> scalar`, for choosing settings and for reporting; lower is better.
      unit: the unit of the error.
      train, validation, test: the examples.
      goal: a validation error; the atlas reports the cost of reaching it.
      anchor: what backprop is known to reach; None if unknown.
      batch_size: examples per update.
      updates: updates per run; fewer where an update is expensive.
      recurrent: whether the network has a loop over time.
      network: the hierarchy of layers, for methods that change it; None for other networks.
      audited: `audited(batch)` returns the program's inputs in an audit; None means the batch itself.
    """

    title: str
    init: Callable[[Key], Params]
    apply: Forward
    objective: Any
    error: Callable[[Params, Batch], Array]
    unit: str
    train: Batch
    validation: Batch
    test: Batch
    goal: float
    anchor: Anchor | None = None
    batch_size: int = 100
    updates: int = 2000
    recurrent: bool = False
    network: nl.Network | None = None
    audited: Callable[[Any], Any] | None = None

    @property
    def widths(self) -> tuple[int, ...] | None:
        """Layer widths of a dense network, from the inputs to the classes; None for other networks."""
        shapes = [] if self.network is None else list(self.network.shapes.values())
        return tuple(width for (width,) in shapes) if shapes and all(len(shape) == 1 for shape in shapes) else None

    @property
    def example(self) -> Batch:
        """The first batch."""
        return jax.tree.map(lambda x: jnp.asarray(x[: self.batch_size]), self.train)


def wrong_answers(apply: Forward) -> Callable[[Params, Batch], Array]:
    """Returns a function for the fraction of wrong answers; NaN if the outputs are not finite."""

    def error(params: Params, batch: Batch) -> Array:
        outputs = apply(params, batch[0])
        return jnp.where(jnp.isfinite(outputs).all(), jnp.mean(jnp.argmax(outputs, axis=-1) != batch[1]), jnp.nan)

    return error


def _classes(network: Any, title: str, parts: dict[str, Any], **more: Any) -> Task:
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    return Task(
        title, network.init, network.apply, objective, wrong_answers(network.apply), "wrong answers", **parts, **more,
        network=network if isinstance(network, nl.Network) else None,
    )  # fmt: skip


def _images(dataset: data.Dataset, hidden: tuple[int, ...], **more: Any) -> Task:
    """Makes a dense-network task; the first quarter of the training images serves for validation."""
    sizes = [dataset.train.images.shape[1], *hidden, dataset.num_classes]
    network = nl.mlp(sizes, activation=nl.activations.tanh())
    sets = with_validation(dataset)._asdict()
    return _classes(network, f"{dataset.name}, {'-'.join(map(str, sizes))}", sets, **more)


def digits() -> Task:
    """scikit-learn's digits with one hidden layer; easy: logistic regression reaches 97 % accuracy."""
    return _images(data.digits(), (32,), goal=0.1)


def mnist() -> Task:
    """5,000 MNIST images; logistic regression reaches 89.6 % accuracy, a dense network 93.9 %."""
    return _images(data.mnist_5000(), (100,), goal=0.15, anchor=Anchor(0.061))


def _mnist_1d(network: Any, kind: str, shape: tuple[int, ...], **more: Any) -> Task:
    task = temporal_tasks.mnist_1d(0)
    of = lambda sequences: (sequences.inputs.reshape(-1, *shape), sequences.targets)
    parts = {name: of(getattr(task, name)) for name in ("train", "validation", "test")}
    return _classes(network, f"MNIST-1D, {kind}", parts, **more)


def mnist_1d_linear() -> Task:
    """MNIST-1D with logistic regression (Greydanus 2020)."""
    network = nl.mlp([40, 10], activation=nl.activations.tanh())
    return _mnist_1d(network, "linear", (40,), goal=0.75, anchor=_GREYDANUS(0.68))


def mnist_1d_dense() -> Task:
    """MNIST-1D with two hidden layers of 100 ReLU units (Greydanus 2020)."""
    network = nl.mlp([40, 100, 100, 10], activation=nl.activations.relu())
    return _mnist_1d(network, "40-100-100-10", (40,), goal=0.5, anchor=_GREYDANUS(0.32))


def mnist_1d_convolutional() -> Task:
    """MNIST-1D with three convolutions of stride 2 and 25 channels (Greydanus 2020)."""
    relu = nl.activations.relu()
    convolve = functools.partial(nl.connections.conv, channels=25, stride=(1, 2), padding=((0, 0), (1, 1)))
    network = nl.network(
        nl.Layer("signal", (1, 40, 1)),
        nl.Layer("low", None, convolve((1, 5)), relu),
        nl.Layer("mid", None, convolve((1, 3)), relu),
        nl.Layer("high", None, convolve((1, 3)), relu),
        nl.Layer("features", None, nl.connections.flatten()),
        nl.Layer("output", 10, nl.connections.dense()),
    )
    return _mnist_1d(network, "convolutional", (1, 40, 1), goal=0.3, anchor=_GREYDANUS(0.06))


def student_teacher() -> Task:
    """A tanh network learns the outputs of another with the same architecture, by half the squared error."""
    network = nl.mlp([10, 20, 3], activation=nl.activations.tanh())
    key, teacher = jax.random.key(0), network.init(jax.random.key(1))
    inputs = np.asarray(jax.random.normal(key, (3000, 10)))
    outputs = np.asarray(network.apply(teacher, inputs))
    outputs = (outputs - outputs.mean()) / outputs.std()
    of = lambda rows: (inputs[rows], outputs[rows])
    error = lambda params, batch: jnp.mean((network.apply(params, batch[0]) - batch[1]) ** 2)
    parts: dict[str, Any] = {
        "train": of(slice(1000)),
        "validation": of(slice(1000, 2000)),
        "test": of(slice(2000, None)),
    }
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    return Task(
        "student and teacher, 10-20-3", network.init, network.apply, objective, error, "variance not explained",
        **parts, goal=0.1,
    )  # fmt: skip


def _in_time(task: temporal_tasks.Task, kind: str, units: int, title: str, unit: str, **more: Any) -> Task:
    net = temporal_networks.NETWORKS[kind](task, units)
    part = lambda sequences: (sequences.inputs, sequences.targets)
    parts: dict[str, Any] = {name: part(getattr(task, name)) for name in ("train", "validation", "test")}
    objective, error = temporal_networks.objective(net, task), temporal_networks.error(net, task)
    return Task(title, net.init, net.apply, objective, error, unit, **parts, recurrent=True, **more)


def mnist_1d_gru() -> Task:
    """MNIST-1D as a time series, with a bidirectional GRU (Greydanus 2020)."""
    task = temporal_tasks.mnist_1d(0)
    return _in_time(task, "GRU", 6, "MNIST-1D, GRU", "wrong answers", goal=0.3, anchor=_GREYDANUS(0.09), updates=1000)


def delayed() -> Task:
    """Delayed exclusive-or with leaky units: the answer is due long after the inputs."""
    task = temporal_tasks.delayed_xor(0)
    return _in_time(task, "leaky", 32, "delayed exclusive-or, leaky units", "wrong answers", goal=0.1, updates=500)


def spiking() -> Task:
    """Delayed exclusive-or with integrate-and-fire units, trained with a surrogate derivative."""
    task = temporal_tasks.delayed_xor(0)
    return _in_time(task, "spiking", 50, "delayed exclusive-or, spiking units", "wrong answers", goal=0.1, updates=500)


def deep() -> Task:
    """scikit-learn's digits with a residual network of 64 layers, under depth-μP (Innocenti et al. 2025)."""
    dataset = data.digits()
    network = nl.residual(64, 32, 10, layers=64, activation=nl.activations.tanh())
    title = f"{dataset.name}, 64 layers of 32 units with skip connections"
    return _classes(network, title, with_validation(dataset)._asdict(), goal=0.1, updates=500)


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "mnist": mnist,
    "mnist_1d_linear": mnist_1d_linear,
    "mnist_1d_dense": mnist_1d_dense,
    "mnist_1d_convolutional": mnist_1d_convolutional,
    "mnist_1d_gru": mnist_1d_gru,
    "student_teacher": student_teacher,
    "deep": deep,
    "delayed": delayed,
    "spiking": spiking,
}


def with_images(folder: Any) -> Task:
    """A user's MNIST-style IDX files, with a dense network."""
    return _images(data.idx_folder(folder), (100,), goal=0.15)
