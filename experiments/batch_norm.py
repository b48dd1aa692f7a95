"""Trains a deep sigmoid network on digits with and without batch normalisation (seed 001 §5), by two rules.

python -m experiments.batch_norm --help
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive
from nl_jax._core.numerics import mean_and_error


class Scheme(NamedTuple):
    """Whether a network is normalised, and in which order it learns its parameters."""

    normalised: bool
    stages: tuple[tuple[str, ...], ...] = (("*",),)
    """Patterns of the parameters that each stage of a step learns."""
    credit: Callable[[], nl.spaces.Credit] = nl.spaces.per_batch_credit
    """Credit of node perturbation: noise is judged by the loss of the whole batch or of its own example."""


SCHEMES = {
    "no normalisation": Scheme(normalised=False),
    "batch norm, all parameters at once": Scheme(normalised=True),
    "batch norm, first γ and β, then weights": Scheme(normalised=True, stages=(("*/gamma", "*/beta"), ("*",))),
    "no normalisation, credit by example": Scheme(normalised=False, credit=nl.spaces.per_example_credit),
}

CHANCE = float(np.log(10))  # the loss of uniform guessing among ten classes

RULES: dict[str, tuple[str, ...]] = {"backprop": tuple(SCHEMES)[:3], "node perturbation": tuple(SCHEMES)}


@dataclass(frozen=True)
class Config:
    """Train a deep sigmoid network on digits with and without batch normalisation, by backprop and node perturbation.

    Plain gradient descent trains every scheme at every learning rate; each scheme is judged at its own best rate. With
    batch normalisation, node perturbation must credit all noise by the loss of the whole batch. Prints a table and
    writes config.json, metrics.jsonl, batch_norm.npz and batch_norm.png to --out.
    """

    out: Path = Path("results/batch_norm")
    """Folder for the results; replaces files of an earlier run."""
    hidden: tuple[int, ...] = (32, 32, 32)
    """Units of each hidden layer (logistic sigmoid)."""
    updates: int = 600
    """Parameter updates."""
    batch_size: int = 50
    """Examples per update."""
    num_samples: int = 32
    """Random directions per update of node perturbation."""
    backprop_rates: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Learning rates tried with backprop."""
    node_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """Learning rates tried with node perturbation."""
    seeds: int = 5
    """Independent runs of each scheme at each learning rate, trained at once."""
    quick: bool = False
    """Run a small version: 200 updates of 2 seeds at two of the learning rates, in about a minute."""


@dataclass
class Curve:
    """One scheme's training at one learning rate; arrays are [measurements, seeds] or [measurements]."""

    rule: str
    scheme: str
    learning_rate: float
    evaluations: int = 0
    update: list[int] = dataclasses.field(default_factory=list)
    train_loss: list[np.ndarray] = dataclasses.field(default_factory=list)
    test_accuracy: list[np.ndarray] = dataclasses.field(default_factory=list)


def run(config: Config) -> list[Curve]:
    """Trains with every rule, scheme and learning rate, saving as it goes; returns all curves.

    Raises:
      ExperimentError: if a setting or folder is invalid.
    """
    if config.quick:
        config = dataclasses.replace(
            config, updates=min(config.updates, 200), seeds=min(config.seeds, 2),
            backprop_rates=config.backprop_rates[1:3], node_rates=config.node_rates[1:3],
        )  # fmt: skip
    _check(config)
    dataset = data.digits()
    folder = Folder(config.out, config, outputs=["batch_norm.png", "batch_norm.npz"])
    print(
        f"{dataset.name}: {len(dataset.train.labels)} images to train, {len(dataset.test.labels)} to test, "
        f"{config.seeds} seeds, {config.updates} updates of batch {config.batch_size}"
    )
    curves: list[Curve] = []
    try:
        for rule, schemes in RULES.items():
            for scheme in schemes:
                print(f"{rule}, {scheme}")
                for rate in config.backprop_rates if rule == "backprop" else config.node_rates:
                    curves.append(_train(rule, scheme, rate, config, dataset))
                    folder.metric(**dataclasses.asdict(curves[-1]))
    finally:  # also after an error or Ctrl-C: show the results so far
        if curves:
            folder.arrays("batch_norm", {f"{c.rule}/{c.scheme}/{c.learning_rate:g}": c.train_loss for c in curves})
            picture = folder.picture("batch_norm", plot(curves, dataset.name))
            print(table(curves))
            print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, batch_norm.npz, config.json)")
    return curves


def _check(config: Config) -> None:
    at_least(config, updates=1, num_samples=1, seeds=1, hidden=1)
    if not 2 <= config.batch_size <= 1437:
        raise ExperimentError(f"--batch-size must be 2 to the 1437 training examples, got {config.batch_size}")
    positive(config, "backprop_rates", "node_rates")


def _network(config: Config, normalised: bool, dataset: data.Dataset) -> nl.Network:
    dense = nl.connections.dense
    layers = [nl.Layer("input", dataset.train.images.shape[1])]
    for l, units in enumerate(config.hidden, start=1):
        layer = nl.Layer(f"hidden{l}", units, dense(bias=not normalised), nl.activations.sigmoid())
        layers.append(nl.batch_norm(layer) if normalised else layer)
    return nl.network(*layers, nl.Layer("output", dataset.num_classes, dense()))


def _train(rule: str, scheme: str, rate: float, config: Config, dataset: data.Dataset) -> Curve:
    """Trains all seeds at one learning rate; the curve of a diverged run ends early."""
    normalised, stages, credit = SCHEMES[scheme]
    network = _network(config, normalised, dataset)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)

    def estimator(objective: Any) -> nl.GradientEstimator:
        if rule == "backprop":
            return nl.backprop(objective)
        signs = nl.directions.rademacher()
        return nl.node_perturbation(objective, num_samples=config.num_samples, credit=credit(), directions=signs)

    learner = nl.alternating(objective, [nl.Stage(patterns, estimator, optax.sgd(rate)) for patterns in stages])
    train, test = (jax.tree.map(jnp.asarray, (split.images, split.labels)) for split in (dataset.train, dataset.test))
    whole = len(train[1]) // config.batch_size
    batches = train[0][: whole * config.batch_size].reshape(whole, config.batch_size, -1)

    def inferring(params: Any) -> Any:
        return nl.normalisation.inference(network.apply, nl.normalisation.population(network.apply)(params, batches))

    def train_loss(params: Any) -> jax.Array:
        return jnp.mean(nl.losses.cross_entropy(inferring(params)(params, train[0]), train[1]))

    @jax.jit
    @jax.vmap
    def measure(params: Any) -> tuple[jax.Array, jax.Array]:
        correct = jnp.argmax(inferring(params)(params, test[0]), axis=-1) == test[1]
        return train_loss(params), jnp.mean(correct)

    curve = Curve(rule, scheme, rate)

    def log(report: nl.Report) -> dict[str, str]:
        loss, accuracy = map(np.asarray, measure(report.state.params))
        curve.update.append(report.step)
        curve.train_loss.append(loss)
        curve.test_accuracy.append(accuracy)
        return {"test": f"{100 * accuracy.mean():.1f} %"}

    try:
        history = nl.restarts(
            learner, jax.random.key(0), network.init, train, num_restarts=config.seeds, num_steps=config.updates,
            batch_size=config.batch_size, steps_per_dispatch=max(1, config.updates // 20), log=log,
            score=lambda params: jnp.mean(objective(params, train)),
        ).history  # fmt: skip
    except nl.Diverged as lost:
        history = lost.history
        curve.train_loss[-1] = np.full(config.seeds, np.inf)
    curve.evaluations = int(history.evaluations[0].sum())
    return curve


def best(curves: Sequence[Curve]) -> dict[tuple[str, str], Curve]:
    """Returns for each rule and scheme the curve of the learning rate with the lowest final mean training loss."""
    chosen: dict[tuple[str, str], Curve] = {}
    for curve in curves:
        rival = chosen.get((curve.rule, curve.scheme))
        if rival is None or not _final_loss(curve) >= _final_loss(rival):
            chosen[curve.rule, curve.scheme] = curve
    return chosen


def _final_loss(curve: Curve) -> float:
    loss = float(curve.train_loss[-1].mean())
    return loss if np.isfinite(loss) else np.inf


def table(curves: Sequence[Curve]) -> str:
    """Returns each rule and scheme at its best learning rate as text; ± is one standard error over seeds."""
    lines = [f"{'':60}{'rate':>6}{'evaluations':>13}{'training loss':>18}{'test accuracy %':>17}"]
    for (rule, scheme), curve in best(curves).items():
        (loss, its_error), (accuracy, error) = map(
            mean_and_error, (curve.train_loss[-1], 100 * curve.test_accuracy[-1])
        )
        lines.append(
            f"{f'{rule}, {scheme}':60}{curve.learning_rate:>6g}{curve.evaluations:>13,}{loss:>9.4f} ± {its_error:.4f}"
            f"{accuracy:>10.2f} ± {error:4.2f}"
        )
    lines += [
        "rate: the learning rate with the lowest training loss. evaluations: forward passes of the batch per seed, a",
        "reverse sweep counted as two. Losses and accuracies are at inference, with the population's statistics.",
    ]
    return "\n".join(lines)


def plot(curves: Sequence[Curve], title: str) -> Any:
    """Plots one row per rule: training loss and test accuracy against updates, and loss against learning rate."""
    from matplotlib import ticker

    from experiments.harness.plotting import band, figure, style

    rules = list(dict.fromkeys(curve.rule for curve in curves))
    canvas, axes = figure(len(rules), 3, size=(13, 1.2 + 3.4 * len(rules)))
    for rule, (by_update, accuracies, by_rate) in zip(rules, np.reshape(axes, (len(rules), 3)), strict=True):
        ours = [curve for curve in curves if curve.rule == rule]
        for (_, scheme), curve in best(ours).items():
            look = style(list(SCHEMES).index(scheme))
            band(by_update, np.asarray(curve.update), np.asarray(curve.train_loss), look, scheme)
            band(accuracies, np.asarray(curve.update), 100 * np.asarray(curve.test_accuracy), look, scheme)
            tried = [c for c in ours if c.scheme == scheme and np.isfinite(_final_loss(c))]
            rates, losses = np.array([c.learning_rate for c in tried]), np.array([c.train_loss[-1] for c in tried])
            if tried:
                band(by_rate, rates, losses, {**look, "markevery": None}, scheme)
        by_update.set(xlabel="updates", title=f"{rule}, each at its best learning rate")
        accuracies.set(xlabel="updates", ylabel="test accuracy (%)", ylim=(0, 100), title=f"{rule}, the same runs")
        by_rate.set(xlabel="learning rate", xscale="log", title=f"{rule}, after the last update")
        by_rate.set_xticks(sorted({curve.learning_rate for curve in ours}))
        by_rate.xaxis.set_major_formatter("{x:g}")
        by_rate.xaxis.set_minor_locator(ticker.NullLocator())
        for panel in (by_update, by_rate):
            panel.set(yscale="log", ylabel="training loss (nats)")
            panel.set_ylim(top=min(panel.get_ylim()[1], 10))  # larger losses are those of diverging runs
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(ticker.NullLocator())
            panel.axhline(CHANCE, color="#888888", linewidth=1, linestyle=":", label="chance", zorder=1)
    handles = {
        label: h for panel in np.ravel(axes) for h, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    shown = [label for label in (*SCHEMES, "chance") if label in handles]
    canvas.legend([handles[s] for s in shown], shown, loc="outside lower center", ncols=3, frameon=False)
    canvas.suptitle(f"{title}: a deep sigmoid network, without batch normalisation and with it")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.batch_norm")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
