"""Tasks, methods and training of the decorrelation experiment."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.harness import data
from experiments.harness.sweep import Sets, sweep, with_validation

WIDTH = 64  # units of each of the two hidden layers


class Task(NamedTuple):
    """A data set with a target loss.

    Attributes:
      sets: examples, (inputs, labels or targets).
      outputs: number of outputs.
      target: the loss to reach on the test set.
      classes: whether targets are classes, with the cross-entropy loss; otherwise numbers, with half the squared error.
    """

    sets: Sets
    outputs: int
    target: float
    classes: bool


class Trial(NamedTuple):
    """Learning rates of the weights and of R; the latter is 0 without decorrelation."""

    weights: float
    decorrelation: float


def digits() -> Task:
    """Returns scikit-learn's 8×8 digits."""
    return Task(with_validation(data.digits()), 10, 0.3, True)


def mnist() -> Task:
    """Returns 5,000 MNIST images, averaged over 2×2 pixels to 14×14."""
    sets = with_validation(data.mnist_5000())
    return Task(Sets(*((halved(x), labels) for x, labels in sets)), 10, 0.7, True)


def halved(images: np.ndarray) -> np.ndarray:
    """Averages images of 28×28 pixels, [images, 784], over 2×2 pixels to [images, 196]."""
    return images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)


def student_teacher() -> Task:
    """Returns outputs of a random 32-32-5 tanh network for correlated Gaussian inputs, whose variances fall as 1/i."""
    rng = np.random.default_rng(0)
    inputs, outputs = 32, 5
    basis, _ = np.linalg.qr(rng.normal(size=(inputs, inputs)))
    spread = basis * np.sqrt(inputs / np.arange(1, inputs + 1) / np.sum(1 / np.arange(1, inputs + 1)))
    x = (rng.normal(size=(6000, inputs)) @ spread.T).astype(np.float32)
    low, high = rng.normal(size=(inputs, 32)) / inputs**0.5, rng.normal(size=(32, outputs))
    y = np.tanh(2 * x @ low) @ high
    y = ((y - y.mean(axis=0)) / y.std(axis=0)).astype(np.float32)
    return Task(Sets((x[:4000], y[:4000]), (x[4000:5000], y[4000:5000]), (x[5000:], y[5000:])), outputs, 0.6, False)


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "mnist": mnist, "student_teacher": student_teacher}

Method = Callable[..., nl.GradientEstimator]

METHODS: dict[str, Method] = {
    "backprop": lambda objective, num_samples: nl.backprop(objective),
    "NP": nl.node_perturbation,
    "INP": nl.iterative_node_perturbation,
    "ANP": nl.activity_node_perturbation,
}


class Trained(NamedTuple):
    """A method's results in every trial and from every initialisation; arrays [trials, seeds, moments].

    Attributes:
      validation: mean loss on the validation set.
      test: mean loss on the test set.
      error: test error: the fraction of wrong answers, or of the targets' unexplained variance.
      correlation: root mean square correlation between the inputs of a layer's weights.
      evaluations: objective evaluations of one update.
    """

    validation: np.ndarray
    test: np.ndarray
    error: np.ndarray
    correlation: np.ndarray
    evaluations: int


def train(
    method: Method,
    task: Task,
    trials: Sequence[Trial],
    *,
    decorrelated: bool,
    kappa: float,
    num_samples: int,
    seeds: int,
    batch_size: int,
    moments: Sequence[int],
) -> Trained:
    """Trains by stochastic gradient descent at every trial's rates, from the same initialisations for every method."""
    network, estimator = build(method, task, decorrelated=decorrelated, kappa=kappa, num_samples=num_samples)
    rates = {"weights": jnp.asarray([trial.weights for trial in trials], jnp.float32)}
    rates["decorrelation"] = jnp.asarray([trial.decorrelation for trial in trials], jnp.float32)

    def learner(trial: Any) -> nl.Learner:
        """Returns the learner of a trial, given the trial's number."""
        number = jnp.asarray(trial).astype(jnp.int32)
        descent = {name: optax.scale(-rate[number]) for name, rate in rates.items()}
        return nl.learner(estimator, optax.multi_transform(descent, _kinds))

    found = sweep(
        learner, network.init, measure(network, task), task.sets,
        rates=range(len(trials)), seeds=seeds, batch_size=batch_size, moments=moments,
    )  # fmt: skip
    return Trained(**found, evaluations=evaluations(network, estimator, task))


def build(
    method: Method, task: Task, *, decorrelated: bool, kappa: float, num_samples: int
) -> tuple[nl.Network, nl.GradientEstimator]:
    """Returns a task's network and its estimator; the method estimates the gradients of all parameters but R."""
    sizes = [task.sets.train[0].shape[1], WIDTH, WIDTH, task.outputs]
    network = nl.mlp(sizes, activation=nl.activations.tanh(), decorrelated=decorrelated)
    objective = nl.supervised(network.apply, _loss(task))
    weights = functools.partial(method, num_samples=num_samples)
    parts = {"*/decorrelation": functools.partial(nl.decorrelation, kappa=kappa), "*": weights}
    return network, nl.partition(objective, parts) if decorrelated else weights(objective)


def evaluations(network: nl.Network, estimator: nl.GradientEstimator, task: Task) -> int:
    """Returns the objective evaluations of one update."""
    params = network.init(jax.random.key(0))
    state = estimator.init(jax.random.key(0), params)
    few = jax.tree.map(lambda x: x[:2], task.sets.train)
    return int(jax.jit(lambda: estimator.estimate(jax.random.key(0), state, params, few)[2].evaluations)())


def _kinds(params: Any) -> Any:
    name = lambda path, _: "decorrelation" if path[-1].key == "decorrelation" else "weights"
    return jax.tree_util.tree_map_with_path(name, params)


def _loss(task: Task) -> Any:
    return nl.losses.cross_entropy if task.classes else nl.losses.half_squared_error


def measure(network: nl.Network, task: Task) -> Callable[[Any, Sets], dict[str, jax.Array]]:
    """Returns a function for the losses, error and correlation of `Trained`."""

    def measured(params: Any, sets: Sets) -> dict[str, jax.Array]:
        loss = lambda inputs, targets: jnp.mean(_loss(task)(network.apply(params, inputs), targets))
        inputs, targets = map(jnp.asarray, sets.test)
        axons = network.axons(params, inputs)
        outputs = axons["output"]
        if task.classes:
            error = jnp.mean(jnp.argmax(outputs, axis=1) != targets)
        else:
            error = jnp.mean((outputs - targets) ** 2) / jnp.mean(targets**2)
        read = [correlation(x @ params[name].get("decorrelation", jnp.eye(x.shape[1])))
                for x, name in zip(axons.values(), list(params), strict=False)]  # fmt: skip
        return {
            "validation": loss(*sets.validation), "test": loss(*sets.test), "error": error,
            "correlation": jnp.mean(jnp.stack(read)),
        }  # fmt: skip

    return measured


def correlation(q: jax.Array) -> jax.Array:
    """Returns the root mean square of ⟨q_i q_j⟩/√(⟨q_i²⟩⟨q_j²⟩), i ≠ j, over inputs that are not always 0."""
    moments = q.T @ q / len(q)
    power = jnp.diagonal(moments)
    lives = (power > 1e-8).astype(q.dtype)
    scale = jnp.sqrt(jnp.where(power > 1e-8, power, 1))
    squares = (moments / scale[:, None] / scale[None, :]) ** 2 * lives[:, None] * lives[None, :]
    pairs = jnp.sum(lives) * (jnp.sum(lives) - 1)
    return jnp.sqrt((jnp.sum(squares) - jnp.sum(jnp.diagonal(squares))) / pairs)
