"""Compares depth with width at equal numbers of parameters (seed 001: how many layers, and how many nodes).

python -m experiments.depth_width --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness import data, temporal_tasks
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, with_error
from experiments.harness.settings import at_least, positive, rising
from experiments.harness.sweep import Scores, Sets, lowest, scores, sweep, with_validation
from nl_jax._core.numerics import mean_and_error

OUTPUTS = 10
MOMENTS = 40  # number of times at which networks are scored, spaced geometrically


@dataclass(frozen=True)
class Config:
    """Train networks of one to six hidden layers and equal numbers of parameters on handwritten digits and MNIST-1D.

    Every network learns at every rate; the validation loss chooses its rate and when to stop. No theory predicts the
    result. Prints a table and writes config.json, metrics.jsonl, depth_width.json and depth_width.png to --out.
    """

    out: Path = Path("results/depth_width")
    """Folder for the results; replaces files of an earlier run."""
    parameters: tuple[int, ...] = (1500, 6000)
    """Numbers of weights and biases; each network has the width that comes nearest."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 6)
    """Numbers of hidden layers (tanh); all layers of a network have the same width."""
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """Learning rates tried."""
    updates: int = 6000
    """Largest number of parameter updates."""
    batch_size: int = 50
    """Examples per update."""
    seeds: int = 5
    """Independent runs of each network at each rate."""
    quick: bool = False
    """Run a small version: two depths and 100 updates of 2 seeds at one rate, in about 15 seconds."""


class Shape(NamedTuple):
    """A network's hidden layers, and the number of its parameters."""

    depth: int
    width: int
    parameters: int


class Stopped(NamedTuple):
    """One network at the rate and at the moment of the least validation loss; arrays are [seeds].

    Attributes:
      task: "digits" or "MNIST-1D".
      budget: the requested number of parameters.
      shape: shape of its hidden layers.
      rate: learning rate.
      updates: number of updates before it was stopped.
      train_loss, test_loss: mean cross entropy in nats.
      test_error: fraction of wrong answers.
    """

    task: str
    budget: int
    shape: Shape
    rate: float
    updates: np.ndarray
    train_loss: np.ndarray
    test_loss: np.ndarray
    test_error: np.ndarray


def run(config: Config) -> list[Stopped]:
    """Trains every network in turn, saving as it goes.

    Raises:
      ExperimentError: if a setting or folder is invalid, or a package is missing.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[:3:2], rates=config.rates[2:3], updates=min(config.updates, 100),
            seeds=min(config.seeds, 2), parameters=config.parameters[:1],
        )  # fmt: skip
    _check(config)
    tasks = {"digits": _digits(), "MNIST-1D": _mnist_1d()}
    todo = [(task, budget, depth) for task in tasks for budget in config.parameters for depth in config.depths]
    # shape() checks the settings before anything is written
    shapes = [shape(tasks[task].train[0].shape[1], depth, budget) for task, budget, depth in todo]
    folder = Folder(config.out, config, outputs=[f"depth_width.{kind}" for kind in ("json", "png")])
    found: list[Stopped] = []
    try:
        for (task, budget, _), of in zip(tqdm(todo, unit="network"), shapes, strict=True):
            found.append(_taught(task, tasks[task], budget, of, config))
            folder.metric(**found[-1]._asdict())
    finally:  # also after Ctrl-C: show the results so far
        if found:
            folder.data("depth_width", {"networks": [one._asdict() for one in found]})
            folder.picture("depth_width", plot(found))
            print(table(found))
            print(f"picture and data: {folder.path} (depth_width.png, depth_width.json, metrics.jsonl, config.json)")
    return found


def _check(config: Config) -> None:
    at_least(config, updates=1, batch_size=1, seeds=1)
    rising(config, "parameters", "depths")
    positive(config, "rates")


def _digits() -> Sets:
    """Returns the digits, standardised like MNIST-1D: with one mean and deviation for all pixels."""
    sets = with_validation(data.digits())
    mean, deviation = sets.train[0].mean(), sets.train[0].std()
    return Sets(*(((images - mean) / deviation, labels) for images, labels in sets))


def _mnist_1d() -> Sets:
    task = temporal_tasks.mnist_1d(seed=0, num_validation=1000)
    return Sets(*((x[:, :, 0], labels) for x, labels in (task.train, task.validation, task.test)))


def shape(inputs: int, depth: int, budget: int) -> Shape:
    """Returns the width at which a network of the given depth comes nearest to the number of parameters.

    Raises:
      ExperimentError: if even a width of 1 has too many parameters.
    """

    def parameters(width: int) -> int:
        return (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * OUTPUTS

    if parameters(1) > budget:
        raise ExperimentError(
            f"--parameters must be at least {parameters(1)} for {depth} hidden layers and {inputs} inputs, got {budget}"
        )
    width = next(width for width in range(1, budget) if parameters(width + 1) > budget)
    nearest = min(width, width + 1, key=lambda width: abs(parameters(width) - budget))
    return Shape(depth, nearest, parameters(nearest))


def _taught(task: str, sets: Sets, budget: int, of: Shape, config: Config) -> Stopped:
    network = nl.mlp([sets.train[0].shape[1], *[of.width] * of.depth, OUTPUTS], activation=nl.activations.tanh())
    estimator = nl.backprop(nl.supervised(network.apply, nl.losses.cross_entropy))
    moments = np.unique(np.geomspace(1, config.updates, MOMENTS).round().astype(int))
    found = sweep(
        lambda rate: nl.learner(estimator, optax.sgd(rate)), network.init, scores(network.apply), sets,
        rates=config.rates, seeds=config.seeds, batch_size=config.batch_size, moments=moments.tolist(),
    )  # fmt: skip
    return stopped(task, budget, of, config.rates, moments, found)


def stopped(task: str, budget: int, of: Shape, rates: Sequence[float], moments: np.ndarray, found: Scores) -> Stopped:
    """Returns each seed's results where its validation loss is least, at the rate that validation chooses."""
    validation = found.loss["validation"]
    best = lowest(validation.min(axis=-1))
    at = validation[best].argmin(axis=-1)
    seeds = np.arange(len(at))
    train_loss, test_loss, test_error = (
        values[best, seeds, at] for values in (found.loss["train"], found.loss["test"], found.error["test"])
    )
    return Stopped(task, budget, of, rates[best], moments[at], train_loss, test_loss, test_error)


def table(found: Sequence[Stopped]) -> str:
    """Returns the results as text, one row per network; ± is one standard error over seeds."""
    lines = [
        f"{'':10}{'hidden layers':>15}{'parameters':>12}{'rate':>6}{'updates':>18}{'training loss':>18}"
        f"{'test loss':>18}{'test error %':>15}"
    ]
    for one in found:
        lines.append(
            f"{one.task:10}{f'{one.shape.depth} × {one.shape.width}':>15}{one.shape.parameters:>12,}{one.rate:>6g}"
            f"{with_error(one.updates, 0):>18}{with_error(one.train_loss, 4):>18}{with_error(one.test_loss, 4):>18}"
            f"{with_error(100 * one.test_error, 2):>15}"
        )
    lines.append("rate: by validation, and stopped where the validation loss is least, after so many updates.")
    return "\n".join(lines)


def plot(found: Sequence[Stopped]) -> Any:
    """Plots test errors and updates against the number of hidden layers, one column per task."""
    from experiments.harness.plotting import band, figure, style

    tasks, budgets = (list(dict.fromkeys(values)) for values in zip(*((o.task, o.budget) for o in found), strict=True))
    canvas, axes = figure(2, len(tasks), size=(6 * len(tasks), 8.5))
    for column, task in zip(np.reshape(axes, (2, len(tasks))).T, tasks, strict=True):
        for i, budget in enumerate(budgets):
            ours = [one for one in found if (one.task, one.budget) == (task, budget)]
            if not ours:
                continue
            depths = np.array([one.shape.depth for one in ours])
            look = {**style((0, 2, 3, 6)[i % 4]), "markevery": None}
            label = f"{budget:,} parameters"
            band(column[0], depths, np.array([100 * one.test_error for one in ours]), look, label)
            band(column[1], depths, np.array([one.updates for one in ours]), look, label)
            for one in ours:
                where = one.shape.depth, mean_and_error(100 * one.test_error)[0]
                column[0].annotate(f"{one.shape.width}", where, xytext=(6, 4), textcoords="offset points", fontsize=8)
        column[0].set(ylabel="test error (%)", title=f"{task} (numbers: width)")
        column[1].set(ylabel="updates to the least validation loss", yscale="log")
        for panel in column:
            panel.set(xlabel="hidden layers")
            panel.set_xticks(sorted({one.shape.depth for one in found}))
    canvas.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("Depth against width at equal numbers of parameters")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.depth_width")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
