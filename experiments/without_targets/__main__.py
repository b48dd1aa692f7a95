"""The ladder: one small layer of features, learned with more and more supervision, from none to the full error.

python -m experiments.without_targets --help
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import nl_jax as nl
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder
from experiments.without_targets.ladder import LABELS, METHODS, RUNGS, Images, Settings, Teaching, seen
from nl_jax._core.numerics import mean_and_error

DATASETS = {"digits": data.digits, "mnist": data.mnist}


@dataclass(frozen=True)
class Config:
    """Train the same small network without labels, by a reward alone, layer by layer, and by the full error.

    Features are the hidden layer's outputs. All features are scored by a linear read-out trained afterwards and by the
    nearest class mean: both are supervised, and neither changes the features. Networks that learned to answer are also
    scored by their own answers. Prints a table and writes config.json, metrics.jsonl, weights (.npz),
    without_targets.png and receptive_fields.png to --out.
    """

    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist (downloaded through scikit-learn)."""
    data_dir: Path | None = None
    """Folder of MNIST-style IDX files, gzipped or not, to use instead of --dataset: train-images-idx3-ubyte[.gz]
    and so on. If only t10k files are there, four fifths of them are the training set."""
    out: Path = Path("results/without_targets")
    """Folder for the results; files of an earlier run there are replaced."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(
        name for names in RUNGS.values() for name in names
    )
    """Methods to compare, shown by rung; the default is all of them."""
    hidden: int = 32
    """Hidden units, the features; at most the number of pixels."""
    updates: int = 3000
    """Parameter updates of each learning method."""
    batch_size: int = 50
    """Examples per update."""
    num_samples: int = 10
    """Noisy samples of each example per update, for methods that explore by noise."""
    seeds: int = 5
    """Independent runs of each method, trained at once."""
    resume: bool = False
    """Continue an interrupted run: reuse what a run with the same settings finished in --out."""
    quick: bool = False
    """A small version, 200 updates of 2 seeds, in under a minute."""


class Scores(NamedTuple):
    """Results of one method; test accuracies are [seeds]."""

    readout: np.ndarray
    class_mean: np.ndarray
    answers: np.ndarray | None
    evaluations: int
    weights: np.ndarray
    """Weights of the hidden layer, [seeds, pixels, units]."""
    seen: str
    """What can reach the update of these weights."""


def run(config: Config) -> dict[str, Scores]:
    """Trains by each method in turn, saving as it goes; returns the results by method.

    Raises:
      ExperimentError: for an invalid setting, data or folder, or if learning diverges.
    """
    if config.quick:
        config = dataclasses.replace(config, updates=min(config.updates, 200), seeds=min(config.seeds, 2))
    _check(config)
    dataset = data.idx_folder(config.data_dir) if config.data_dir else DATASETS[config.dataset]()
    examples, pixels = dataset.train.images.shape
    if config.batch_size > examples:
        raise ExperimentError(f"--batch-size must be at most the {examples} training examples")
    if config.hidden > min(examples, pixels):
        raise ExperimentError(f"--hidden must be at most {min(examples, pixels)}, as there are principal components")
    pictures = ["without_targets.png", "receptive_fields.png"]
    folder = Folder(config.out, config, outputs=[*pictures, *(f"{name}.npz" for name in METHODS)])
    print(
        f"{dataset.name}: {examples} images to train, {len(dataset.test.labels)} to test, {config.hidden} hidden "
        f"units, {config.seeds} seeds, {config.updates} updates of batch {config.batch_size}"
    )
    finished = Finished(config.out, config, resume=config.resume, but=("methods",))
    scores: dict[str, Scores] = {}
    try:
        for name in config.methods:
            print(name)
            kept = finished(name, functools.partial(_teach, name, config, dataset))
            scores[name] = Scores._make(np.array(value) if isinstance(value, list) else value for value in kept)
            measured = scores[name]._asdict()
            folder.arrays(name, {"weights": measured.pop("weights")})
            folder.metric(method=name, **measured)
    finally:  # also after an error or Ctrl-C: the results so far are shown
        if scores:
            folder.picture("without_targets", plot(scores, dataset.name))
            fields = receptive_fields(scores, dataset.name)
            if fields is not None:
                folder.picture("receptive_fields", fields)
            print(table(scores))
            print(f"pictures and data: {folder.path} (*.png, metrics.jsonl, *.npz, config.json)")
    return scores


def _check(config: Config) -> None:
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown or not config.methods:
        raise ExperimentError(f"unknown method {', '.join(unknown) or '(none)'}; there are {', '.join(METHODS)}")
    twice = {name for name in config.methods if config.methods.count(name) > 1}
    if twice:
        raise ExperimentError(f"--methods names {', '.join(sorted(twice))} twice")
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    for name, least in {"hidden": 1, "updates": 1, "batch_size": 1, "num_samples": 2, "seeds": 1}.items():
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")


def _teach(name: str, config: Config, dataset: data.Dataset) -> Scores:
    """Trains all seeds by one method, then scores what they learned."""
    train, test = map(jnp.asarray, _of_one_length(dataset))
    settings = Settings(config.hidden, config.updates, config.num_samples)
    teaching = METHODS[name](settings, Images(train, jnp.asarray(dataset.train.labels), dataset.num_classes))
    params, evaluations = _taught(name, teaching, config)
    seen_features, new_features = (np.asarray(jax.vmap(teaching.features, (0, None))(params, x)) for x in (train, test))
    if not np.isfinite(new_features).all():
        raise ExperimentError(f"{name}: features are no longer finite; try a larger --batch-size")
    judged = [
        _judged(*features, dataset.train.labels, dataset.test.labels)
        for features in zip(seen_features, new_features, strict=True)
    ]
    readout, class_mean = np.array(judged).T
    answers = None
    if teaching.answers is not None:
        answered = np.asarray(jax.vmap(teaching.answers, (0, None))(params, test))
        answers = np.mean(answered == dataset.test.labels, axis=1)
    weights = np.asarray(params["hidden1"]["weight"])[:, -train.shape[1] :]
    return Scores(readout, class_mean, answers, evaluations, weights, seen(teaching))


def _of_one_length(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images, centred by the training mean and scaled to the mean norm of the training images."""
    mean = dataset.train.images.mean(axis=0, keepdims=True)
    train, test = dataset.train.images - mean, dataset.test.images - mean
    length = np.linalg.norm(train, axis=1).mean()
    return tuple(length * x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))


def _taught(name: str, teaching: Teaching, config: Config) -> tuple[Any, int]:
    """The params of all seeds, stacked, and the number of objective evaluations per seed."""
    key = jax.random.key(0)
    if teaching.lesson is None:
        return jax.vmap(teaching.init)(jax.random.split(key, config.seeds)), 0
    factory, program, batch, optimizer, _ = teaching.lesson
    try:
        found = nl.restarts(
            nl.learner(factory(program), optimizer), key, teaching.init, batch, num_restarts=config.seeds,
            num_steps=config.updates, batch_size=config.batch_size, steps_per_dispatch=max(1, config.updates // 20),
            score=lambda params: jnp.zeros(()),  # all runs count; none is selected
        )  # fmt: skip
    except nl.Diverged as lost:
        raise ExperimentError(f"{name}: {lost}") from lost
    return found.states.params, int(found.history.evaluations[0].sum())


def _judged(features: np.ndarray, new: np.ndarray, labels: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Test accuracy of a linear read-out of standardised features, and of the nearest class mean."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # on so few columns, threads mostly wait for each other, many times longer
        readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, labels)
    return readout.score(new, true), NearestCentroid().fit(features, labels).score(new, true)


def table(scores: dict[str, Scores]) -> str:
    """The ladder as text, a row for each method; ± is one standard error over seeds."""
    lines = [
        f"{'test accuracy %':30}{'own answers':>14}{'linear read-out':>18}{'class means':>15}{'evaluations':>13}  "
        "the hidden layer's update sees"
    ]
    for rung, names in RUNGS.items():
        here = [name for name in names if name in scores]
        lines += [rung] if here else []
        for name in here:
            own, readout, class_mean = (
                "–" if values is None else "{:.2f} ± {:.2f}".format(*mean_and_error(100 * values))
                for values in (scores[name].answers, scores[name].readout, scores[name].class_mean)
            )
            price = f"{scores[name].evaluations:>13,}"
            lines.append(f"  {LABELS[name]:28}{own:>14}{readout:>18}{class_mean:>15}{price}  {scores[name].seen}")
    lines += [
        "± one standard error over seeds; the test images are the same for all, and being few add an error of their",
        "own that is not in it. Linear read-out and class means are supervised: trained with all labels after the",
        "features, which they leave as they are. Own answers: of the network that was taught. evaluations: forward",
        "passes of the batch per seed, a reverse sweep counted as two.",
        "The update sees what the audit finds in its program (docs/audit.md): pre is what a layer receives, post its",
        "values.",
    ]
    return "\n".join(lines)


def plot(scores: dict[str, Scores], title: str) -> Any:
    """Test accuracies of every method by rung, with the evaluations spent and what the update saw."""
    from experiments.harness.plotting import figure, style

    rows, rungs = _rows(scores)
    canvas, (accuracies, costs) = figure(1, 2, size=(12.5, 1.9 + 0.42 * (max(rows.values()) + 1)))
    accuracies.get_gridspec().set_width_ratios([2, 1])
    measures = {"own answers": "answers", "linear read-out": "readout", "nearest class mean": "class_mean"}
    for index, (label, measure) in enumerate(measures.items()):
        found = {name: getattr(s, measure) for name, s in scores.items() if getattr(s, measure) is not None}
        if found:
            means, errors = np.transpose([mean_and_error(100 * values) for values in found.values()])
            look = {**style((0, 2, 3)[index]), "linestyle": "none", "markevery": None}
            accuracies.errorbar(
                means, [rows[name] + 0.2 * (index - 1) for name in found], capsize=3, label=label, **look,
                xerr=np.where(np.isfinite(errors), errors, 0),
            )  # fmt: skip
    spent = {name: s.evaluations for name, s in scores.items() if s.evaluations}
    costs.plot(
        list(spent.values()), [rows[name] for name in spent], **{**style(0), "linestyle": "none", "markevery": None}
    )
    if spent:
        costs.set_xscale("log")
        costs.set_xlim(min(spent.values()) / 3, max(spent.values()) * 3)
    for name, row in rows.items():
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        costs.annotate(scores[name].seen, (1.02, row), **beside)
    for axes in (accuracies, costs):
        axes.set_ylim(max(rows.values()) + 0.6, min(rungs.values()) - 0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    ticks = {**{row: LABELS[name] for name, row in rows.items()}, **{row: rung for rung, row in rungs.items()}}
    accuracies.set_yticks(list(ticks), list(ticks.values()))
    for tick, row in zip(accuracies.get_yticklabels(), ticks, strict=True):
        tick.set_fontweight("bold" if row in rungs.values() else "normal")
    costs.set_yticks([])
    accuracies.set(xlabel="test accuracy (%)", title="how good features and answers are")
    accuracies.xaxis.get_major_locator().set_params(integer=True)
    costs.set(xlabel="objective evaluations", title="what it cost")
    costs.annotate(
        "the hidden layer's update sees", (1.02, 1), xycoords="axes fraction", xytext=(0, 6),
        textcoords="offset points", fontsize=costs.title.get_fontsize(), annotation_clip=False,
    )  # fmt: skip
    canvas.legend(
        *accuracies.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False,
        title="read-out and class means are supervised: they score features that are learned by then",
    )  # fmt: skip
    canvas.suptitle(f"{title}: one hidden layer, taught with ever more to compare with")
    return canvas


def _rows(scores: dict[str, Scores]) -> tuple[dict[str, int], dict[str, int]]:
    """Row numbers of the methods and of the rungs' headings, from the top."""
    rows: dict[str, int] = {}
    rungs: dict[str, int] = {}
    for rung, names in RUNGS.items():
        here = [name for name in names if name in scores]
        if here:
            rungs[rung] = len(rows) + len(rungs)
            rows |= {name: len(rows) + len(rungs) + i for i, name in enumerate(here)}
    return rows, rungs


def receptive_fields(scores: dict[str, Scores], title: str) -> Any:
    """Incoming weights of the first units of seed 0, a row for each method; None if images are not square."""
    from experiments.harness.plotting import figure

    weights = {name: scores[name].weights[0] for names in RUNGS.values() for name in names if name in scores}
    pixels, units = next(iter(weights.values())).shape
    side, shown = math.isqrt(pixels), min(units, 16)
    if side**2 != pixels:
        return None
    canvas, axes = figure(len(weights), shown, size=(2.4 + 0.62 * shown, 1.2 + 0.66 * len(weights)))
    axes = np.reshape(axes, (len(weights), shown))
    rung_of = {name: rung for rung, names in RUNGS.items() for name in names}
    for (name, fields), row in zip(weights.items(), axes, strict=True):
        for field, panel in zip(fields.T, row, strict=False):
            size = np.abs(field).max() or 1
            panel.imshow(field.reshape(side, side), cmap="RdBu_r", vmin=-size, vmax=size)
            panel.grid(visible=False)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        row[0].set_ylabel(f"{LABELS[name]}\n({rung_of[name]})", rotation=0, ha="right", va="center", labelpad=8)
    canvas.suptitle(f"{title}: weights into {shown} hidden units, red positive, blue negative, each to its own scale")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.without_targets")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
