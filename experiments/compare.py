"""Trains one network on the same images with different estimators of the same gradient.

python -m experiments.compare --help
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive
from experiments.harness.users_own import factory_at, is_place
from nl_jax._core.numerics import mean_and_error

Estimator = Callable[[Any, int], nl.GradientEstimator]

SIGNS = nl.directions.rademacher()  # the distribution of least variance, and the cheapest to draw

ESTIMATORS: dict[str, Estimator] = {
    "backprop": lambda objective, samples: nl.backprop(objective),
    "lagrangian_backprop": lambda objective, samples: nl.lagrangian_backprop(objective),
    "node_perturbation": lambda objective, samples: nl.node_perturbation(
        objective, num_samples=samples, directions=SIGNS
    ),
    "weight_perturbation": lambda objective, samples: nl.weight_perturbation(
        objective, num_samples=samples, directions=SIGNS
    ),
    "forward_gradient_nodes": lambda objective, samples: nl.forward_gradient(
        objective, space=nl.spaces.nodes, num_samples=samples, directions=SIGNS
    ),
    "forward_gradient_weights": lambda objective, samples: nl.forward_gradient(
        objective, space=nl.spaces.weights, num_samples=samples, directions=SIGNS
    ),
}

DATASETS = {"digits": data.digits, "mnist": data.mnist}


@dataclass(frozen=True)
class Config:
    """Train one network on the same images with different gradient estimators, side by side.

    Prints a table and writes config.json, metrics.jsonl, arrays (.npz) and compare.png to --out.
    """

    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist (downloaded through scikit-learn)."""
    data_dir: Path | None = None
    """Folder of MNIST-style IDX files, gzipped or not, to use instead of --dataset: train-images-idx3-ubyte[.gz]
    and so on. If there are only t10k files, four fifths of them are used for training."""
    out: Path = Path("results/compare")
    """Folder for the results; replaces files of an earlier run."""
    estimators: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(ESTIMATORS)
    """Estimators to compare, in this order. The default lists the built-in ones; module:factory adds one of your own,
    where factory(objective) makes the estimator."""
    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer (tanh)."""
    updates: int = 2000
    """Parameter updates of each estimator."""
    batch_size: int = 100
    """Examples per update."""
    num_samples: int = 16
    """Random directions per update, for estimators that use them."""
    learning_rate: float = 1e-2
    """Adam's learning rate, the same for all estimators."""
    seeds: int = 5
    """Independent runs per estimator, trained at once."""
    target: float = 0.9
    """Test accuracy; the table gives the objective evaluations needed to reach it."""
    resume: bool = False
    """Keep the estimators that an interrupted run with the same settings finished in --out."""
    quick: bool = False
    """Run a small version: 300 updates of 3 seeds, in under a minute."""


@dataclass
class Curve:
    """One estimator's training, measured at intervals; arrays are [measurements, seeds] or [measurements]."""

    update: list[int] = dataclasses.field(default_factory=list)
    evaluations: list[int] = dataclasses.field(default_factory=list)
    train_loss: list[np.ndarray] = dataclasses.field(default_factory=list)
    test_accuracy: list[np.ndarray] = dataclasses.field(default_factory=list)
    cosine: list[np.ndarray] = dataclasses.field(default_factory=list)
    seconds_per_update: list[float] = dataclasses.field(default_factory=list)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the measurements one by one."""
        names = "update", "evaluations", "train_loss", "test_accuracy", "cosine"
        for values in zip(*(getattr(self, name) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))

    @property
    def seconds(self) -> float:
        """Training time without compilation and measurement: median seconds per update times the updates."""
        return float(np.median(self.seconds_per_update) * self.update[-1]) if self.seconds_per_update else 0.0


def run(config: Config) -> dict[str, Curve]:
    """Trains with every estimator in turn, saving as it goes; returns a curve for each.

    Raises:
      ExperimentError: if a setting, the data or a folder is invalid, or a loss is not finite.
    """
    if config.quick:
        config = dataclasses.replace(config, updates=min(config.updates, 300), seeds=min(config.seeds, 3))
    _check(config)
    dataset = data.idx_folder(config.data_dir) if config.data_dir else DATASETS[config.dataset]()
    if config.batch_size > len(dataset.train.labels):
        raise ExperimentError(f"--batch-size must be at most the {len(dataset.train.labels)} training examples")
    folder = Folder(
        config.out,
        config,
        outputs=["compare.png", *(f"{name.replace(':', '.')}.npz" for name in {*ESTIMATORS, *config.estimators})],
    )
    print(
        f"{dataset.name}: {len(dataset.train.labels)} images to train, {len(dataset.test.labels)} to test, "
        f"{config.seeds} seeds, {config.updates} updates of batch {config.batch_size}"
    )
    finished = Finished(config.out, config, resume=config.resume, but=("estimators",))
    curves: dict[str, Curve] = {}
    try:
        for name in config.estimators:
            print(name)
            if name in finished:
                curves[name] = _again(name, finished[name], folder)
            else:
                curves[name] = Curve()
                finished[name] = _train(name, config, dataset, folder, curves[name])
    finally:  # also after an error or Ctrl-C: show the results so far
        measured = {name: curve for name, curve in curves.items() if len(curve.update) > 1}
        if measured:
            picture = folder.picture("compare", plot(measured, dataset.name))
            print(table(measured, config))
            print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, *.npz, config.json)")
    return curves


def _check(config: Config) -> None:
    unknown = [name for name in config.estimators if name not in ESTIMATORS and not is_place(name)]
    if unknown or not config.estimators:
        raise ExperimentError(
            f"unknown estimator {', '.join(unknown) or '(none)'}; there are {', '.join(ESTIMATORS)}, "
            "and module:factory for one of your own"
        )
    twice = {name for name in config.estimators if config.estimators.count(name) > 1}
    if twice:
        raise ExperimentError(f"--estimators names {', '.join(sorted(twice))} twice")
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    at_least(config, updates=1, batch_size=1, num_samples=1, seeds=1, hidden=1)
    positive(config, "learning_rate")


def _again(name: str, part: dict[str, Any], folder: Folder) -> Curve:
    """Returns a curve that an earlier run finished, and writes it to the folder again."""
    curve = Curve()
    for field, values in part["curve"].items():
        setattr(curve, field, list(map(np.array, values)))
    folder.arrays(name.replace(":", "."), part["recorded"])
    for row in curve.rows():
        folder.metric(estimator=name, **row)
    return curve


def _train(name: str, config: Config, dataset: data.Dataset, folder: Folder, curve: Curve) -> dict[str, Any]:
    """Trains all seeds with one estimator, filling the curve as it goes; returns the curve and the recorded arrays."""
    pixels = dataset.train.images.shape[1]
    network = nl.mlp([pixels, *config.hidden, dataset.num_classes], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    if is_place(name):
        estimator = factory_at("--estimators", name)(objective)
    else:
        estimator = ESTIMATORS[name](objective, config.num_samples)
    train, test = (jax.tree.map(jnp.asarray, (split.images, split.labels)) for split in (dataset.train, dataset.test))
    probe = jax.tree.map(lambda x: x[: config.batch_size], train)
    key = jax.random.key(0)

    def train_loss(params: Any) -> jax.Array:
        return jnp.mean(objective(params, train))

    @jax.jit
    @jax.vmap
    def measure(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        correct = jnp.argmax(network.apply(params, test[0]), axis=-1) == test[1]
        measured = nl.diagnostics.measure(estimator, nl.backprop(objective), key, params, probe, num_estimates=4)
        return train_loss(params), jnp.mean(correct), measured.cosine

    resumed = time.perf_counter()

    def log(report: nl.Report) -> dict[str, str]:
        nonlocal resumed
        update = report.step
        if curve.update:
            curve.seconds_per_update.append((time.perf_counter() - resumed) / (update - curve.update[-1]))
        loss, accuracy, cosine = map(np.asarray, measure(report.state.params))
        if not np.isfinite(loss).all():
            lost = ", ".join(map(str, np.flatnonzero(~np.isfinite(loss))))
            raise ExperimentError(
                f"{name}: the loss of seed {lost} is not finite after {update} updates; lower --learning-rate"
            )
        curve.update.append(update)
        curve.evaluations.append(update * cost)
        curve.train_loss.append(loss)
        curve.test_accuracy.append(accuracy)
        curve.cosine.append(cosine)
        folder.metric(
            estimator=name, update=update, evaluations=update * cost,
            train_loss=loss, test_accuracy=accuracy, cosine=cosine,
        )  # fmt: skip
        resumed = time.perf_counter()
        return {"test": f"{100 * accuracy.mean():.1f} %"}

    learner = nl.learner(estimator, optax.adam(config.learning_rate))
    cost = _evaluations_per_update(learner, network, probe)
    history = None
    try:
        found = nl.restarts(
            learner, key, network.init, train, score=train_loss, num_restarts=config.seeds, num_steps=config.updates,
            batch_size=config.batch_size, steps_per_dispatch=max(1, config.updates // 25), log=log,
        )  # fmt: skip
        history = found.history
    except nl.Interrupted as stopped:
        history = stopped.history
        raise
    except nl.Diverged as stopped:
        history = stopped.history
        raise ExperimentError(f"{name}: {stopped} (--learning-rate)") from stopped
    finally:
        if history is not None:
            recorded = {"loss": history.loss, "evaluations": history.evaluations}
            folder.arrays(name.replace(":", "."), recorded)
    return {"curve": dataclasses.asdict(curve), "recorded": recorded}


def _evaluations_per_update(learner: nl.Learner, network: nl.Network, batch: Any) -> int:
    key = jax.random.key(0)
    state = learner.init(key, network.init(key))
    return int(jax.jit(lambda state: learner.step(key, state, batch)[1].evaluations)(state))


def table(curves: dict[str, Curve], config: Config) -> str:
    """Returns the comparison as text, one row per estimator; ± is one standard error over seeds."""
    price = f"to {100 * config.target:g} %"
    head = f"{'estimator':25}{'test accuracy %':>15}{'updates':>9}{'evaluations':>13}{price:>9}{'seconds':>9}"
    lines = [head + f"{'cosine':>15}"]
    for name, curve in curves.items():
        accuracy, error = mean_and_error(100 * curve.test_accuracy[-1])
        reached = [e for e, a in zip(curve.evaluations, curve.test_accuracy, strict=True) if a.mean() >= config.target]
        cosine = f"{curve.cosine[0].mean():.3f} → {curve.cosine[-1].mean():.3f}"
        lines.append(
            f"{name:25}{accuracy:>8.2f} ± {error:4.2f}{curve.update[-1]:>9,}{curve.evaluations[-1]:>13,}"
            f"{f'{reached[0]:,}' if reached else 'never':>9}{curve.seconds:>9.1f}{cosine:>15}"
        )
    every = next(iter(curves.values())).update[1]
    lines += [
        "± one standard error over seeds. evaluations: forward passes of the batch per seed, a reverse sweep counted",
        f"as two; {price}: those spent when that accuracy was first seen, looking every {every} updates. seconds:",
        "training all seeds, without compiling and measuring. cosine: one estimate to the exact gradient, start → end.",
    ]
    if {"backprop", "lagrangian_backprop"} <= curves.keys():
        a, b = (np.asarray(curves[name].train_loss) for name in ("backprop", "lagrangian_backprop"))
        points = min(len(a), len(b))
        gap = np.max(np.abs(a[:points] - b[:points]))
        lines.append(f"largest difference between the loss curves of backprop and lagrangian_backprop: {gap:.1e}")
    return "\n".join(lines)


def plot(curves: dict[str, Curve], title: str) -> Any:
    """Plots loss against updates and against evaluations, and cosine to backprop against updates."""
    from experiments.harness.plotting import band, figure, style

    canvas, (by_update, by_cost, by_angle) = figure(1, 3, size=(13, 4.6))
    order = list(dict.fromkeys([*ESTIMATORS, *curves]))
    for name, curve in curves.items():
        look, label = style(order.index(name)), name.replace("_", " ")
        loss, update, cost = np.asarray(curve.train_loss), np.asarray(curve.update), np.asarray(curve.evaluations)
        band(by_update, update, loss, look, label)
        band(by_cost, cost[1:], loss[1:], look, label)  # the cost before the first update, 0, has no logarithm
        band(by_angle, update, np.asarray(curve.cosine), look, label)
    for axes in (by_update, by_cost):
        axes.set(yscale="log", ylabel="training loss (nats)")
    by_update.set(xlabel="updates", title="what an update buys")
    if by_cost.get_xlim()[1] > 20 * by_cost.get_xlim()[0]:
        by_cost.xaxis.set_minor_formatter("")  # labels at decades suffice, except on a shorter axis
    by_cost.set(xlabel="objective evaluations (forward passes)", xscale="log", title="what an evaluation buys")
    by_angle.set(
        xlabel="updates", ylabel="cosine to the exact gradient", ylim=(0, 1.05), title="how good an estimate is"
    )
    handles, labels = by_update.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    canvas.suptitle(f"{title}: the same network and images, the gradient estimated in different ways")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.compare")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
