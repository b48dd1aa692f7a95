"""A hierarchy that learns by local rules alone, without labels, and answers for itself.

python -m experiments.hierarchy --help
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from experiments.harness import data
from experiments.harness.data import Split
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder, Verdict
from experiments.hierarchy.network import Answers, Hierarchy, Size, answers, taught

TARGET = 0.10  # required gain in named images over the random hierarchies
SHOWN = 8  # images in the figure of completions


@dataclass(frozen=True)
class Config:
    """Teach a hierarchy by local rules alone, without labels, and let it answer for itself.

    Two convolutions, and a layer of prototypes that reads both, learn by competition. Links between the prototypes
    learn by competitive Hebbian learning. Concepts are clusters of prototypes and learn by competition. Each concept is
    named by the label of its most typical training image, so ten labels are used in all. Prototypes complete images
    whose lower half is hidden, and tell images rotated by 90° from upright ones. The comparisons are hierarchies with
    fewer convolutions, with random convolutions, and with random weights in all layers below the links; the links,
    concepts and recall of these learn in the same way. Prints a table and writes config.json, hierarchy.json,
    hierarchy.png and completion.png to --out.
    """

    out: Path = Path("results/hierarchy")
    """Folder for the results; files of an earlier run there are replaced."""
    features: int = 16
    """Units of each convolution."""
    memories: int = 300
    """Prototypes."""
    neighbours: int = 3
    """Number of runner-up prototypes that are linked to the best one."""
    images: int = 4000
    """Training images, of the 4,000 available."""
    validation: int = 0
    """Of the training images, how many are held out and tested on instead of the test images: for choosing settings."""
    seeds: int = 5
    """Runs of each kind of hierarchy."""
    resume: bool = False
    """Continue an interrupted run: reuse what a run with the same settings finished in --out."""
    quick: bool = False
    """A small version, 600 images and two seeds, in about half a minute."""


class Kind(NamedTuple):
    """A kind of hierarchy: what its prototypes read, and which layers below the links learn."""

    reads: str
    features_learn: bool
    memory_learns: bool


KINDS = {
    "random weights": Kind("low and mid", features_learn=False, memory_learns=False),
    "random convolutions": Kind("low and mid", features_learn=False, memory_learns=True),
    "no convolution": Kind("pixels", features_learn=True, memory_learns=True),
    "one convolution": Kind("low", features_learn=True, memory_learns=True),
    "two convolutions": Kind("low and mid", features_learn=True, memory_learns=True),
}
WHOLE, RANDOM, HALF_RANDOM = "two convolutions", "random weights", "random convolutions"
LADDER = tuple(KINDS)[2:]


class Scores(NamedTuple):
    """Scores of a kind of hierarchy, each [seeds].

    Attributes:
      named: fraction of images whose concept has the right name.
      from_half: the same with the lower half of the images hidden.
      completed: fraction of the hidden halves' variance about the mean image that the recalled images explain.
      novelty: probability that a rotated image is less familiar than an upright one (area under the ROC curve).
    """

    named: np.ndarray
    from_half: np.ndarray
    completed: np.ndarray
    novelty: np.ndarray


TITLES = {
    "named": "images named rightly", "from_half": "named from the upper half",
    "completed": "hidden variance explained", "novelty": "turned images told (AUC)",
}  # fmt: skip
CHANCE = {"named": 10, "from_half": 10, "completed": 0, "novelty": 50}


def run(config: Config) -> dict[str, Scores]:
    """Trains and tests all kinds of hierarchy, and saves; returns their scores.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a judged statement does not hold.
    """
    if config.quick:
        config = dataclasses.replace(
            config, images=min(config.images, 600), memories=min(config.memories, 100),
            seeds=min(config.seeds, 2),
        )  # fmt: skip
    learned_from, questions = _check(config)
    folder = Folder(config.out, config, outputs=("hierarchy.json", "hierarchy.png", "completion.png"))
    finished = Finished(config.out, config, resume=config.resume)
    size = Size(config.features, config.memories, config.neighbours)
    found: dict[str, list[list[float]]] = {}
    completions = np.zeros((3, SHOWN, 784))
    with tqdm(total=config.seeds * len(KINDS), unit="hierarchy") as bar:
        for name, kind in KINDS.items():
            for seed in range(config.seeds):
                shown = name == WHOLE and seed == 0
                part = finished(
                    f"{name}, seed {seed}",
                    functools.partial(_answered, kind, seed, size, learned_from, questions, complete=shown),
                )
                found.setdefault(name, []).append(part["scores"])
                if shown:
                    completions = np.array(part["completions"])
                bar.update()
    results = {name: Scores(*np.array(scores).T) for name, scores in found.items()}
    judged = judge(results)[:2] if config.quick else judge(results)  # two seeds cannot resolve the others
    verdict = Verdict(max(one["deviation"] for one in judged), 1.0, "parts of what is allowed")
    folder.data(
        "hierarchy", {**verdict._asdict(), "judged": judged, "scores": {k: v._asdict() for k, v in results.items()}}
    )
    folder.picture("hierarchy", plot(results))
    folder.picture("completion", show(completions))
    print(table(results))
    print("\n".join(f"{one['statement']}: {one['figure']}" for one in judged))
    print(f"pictures and data: {folder.path} (hierarchy.png, completion.png, hierarchy.json, config.json)")
    wrong = [f"{one['statement']} ({one['figure']})" for one in judged if not one["deviation"] <= 1]
    if wrong:
        raise ExperimentError(f"not so: {'; '.join(wrong)}")
    return results


def _answered(
    kind: Kind, seed: int, size: Size, learned_from: Split, questions: Split, *, complete: bool
) -> dict[str, Any]:
    """Trains and tests one hierarchy; returns its scores and, if `complete`, images that it completed."""
    one = taught(
        jax.random.fold_in(jax.random.key(0), seed), learned_from.images, size, kind.reads,
        features_learn=kind.features_learn, memory_learns=kind.memory_learns,
    )  # fmt: skip
    scores, half = _scored(one, learned_from, questions)
    return {"scores": scores, "completions": _completions(questions.images, half) if complete else None}


def _check(config: Config) -> tuple[Split, Split]:
    """Checks the settings; returns the training images and the images to test on."""
    for name, least in {
        "features": 1, "memories": 20, "neighbours": 1, "images": 100, "validation": 0, "seeds": 2,
    }.items():  # fmt: skip
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    dataset = data.mnist_5000()
    train = Split(*(part[: config.images] for part in dataset.train))
    if config.neighbours >= config.memories:
        raise ExperimentError(f"--neighbours must be below --memories, got {config.neighbours} and {config.memories}")
    if len(train.labels) - config.validation < config.memories:
        raise ExperimentError(
            f"--memories must be at most the {len(train.labels) - config.validation} images to learn from, "
            f"got {config.memories}"
        )
    if not config.validation:
        return train, dataset.test
    parts = zip(*((part[: -config.validation], part[-config.validation :]) for part in train), strict=True)
    first, last = (Split(*part) for part in parts)
    return first, last


def names(seen: Answers, labels: np.ndarray) -> dict[int, int]:
    """Each concept's name: the label of the image with the strongest response. No other labels are used."""
    found = {}
    for concept in np.unique(seen.concept):
        own = np.flatnonzero(seen.concept == concept)
        found[int(concept)] = int(labels[own[np.argmax(seen.certainty[own])]])
    return found


def hidden(images: np.ndarray) -> np.ndarray:
    """The images without their lower half."""
    return np.where(np.arange(images.shape[1]) < images.shape[1] // 2, images, 0)


def turned(images: np.ndarray) -> np.ndarray:
    """The images rotated by 90°."""
    return np.rot90(images.reshape(-1, 28, 28), axes=(1, 2)).reshape(len(images), -1)


def _scored(hierarchy: Hierarchy, learned_from: Split, questions: Split) -> tuple[list[float], Answers]:
    called = names(answers(hierarchy, learned_from.images), learned_from.labels)
    whole, half, odd = (
        answers(hierarchy, images) for images in (questions.images, hidden(questions.images), turned(questions.images))
    )
    right = [
        float(np.mean([called.get(int(c)) == label for c, label in zip(of.concept, questions.labels, strict=True)]))
        for of in (whole, half)
    ]
    below = np.arange(questions.images.shape[1]) >= questions.images.shape[1] // 2
    truth = questions.images[:, below]
    left = np.sum((truth - half.recalled[:, below]) ** 2)
    variance = np.sum((truth - learned_from.images.mean(axis=0)[below]) ** 2)
    known = np.repeat([1, 0], len(questions.labels))
    area = roc_auc_score(known, np.concatenate([whole.familiarity, odd.familiarity]))
    return [*right, float(1 - left / variance), float(area)], half


def _completions(images: np.ndarray, half: Answers) -> np.ndarray:
    """Shown images, completed images and originals, [3, images, pixels]."""
    some = images[:SHOWN]
    shown = hidden(some)
    below = np.arange(some.shape[1]) >= some.shape[1] // 2
    return np.stack([shown, np.where(below, half.recalled[:SHOWN], shown), some])


def judge(results: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Each statement with its figure and its deviation; a deviation above 1 is a failure."""
    judged = []
    for field, other in (("named", RANDOM), ("from_half", RANDOM), ("from_half", HALF_RANDOM)):
        gap = (getattr(results[WHOLE], field) - getattr(results[other], field)).mean()
        judged.append({
            "statement": f"{TITLES[field]}: at least ten points more than with {other}",
            "figure": f"{100 * gap:.1f} points",
            "deviation": TARGET / gap if gap > 0 else np.inf,
        })  # fmt: skip
    means = [results[name].named.mean() for name in LADDER]
    judged.append({
        "statement": "each convolution that is added raises how many images are named rightly",
        "figure": ", ".join(f"{100 * mean:.1f} %" for mean in means),
        "deviation": 0.0 if all(np.diff(means) > 0) else np.inf,
    })  # fmt: skip
    return judged


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def table(results: Mapping[str, Scores]) -> str:
    """Scores in per cent as text; ± is one standard error over seeds."""
    lines = [f"{'%':20}" + "".join(f"{title:>28}" for title in TITLES.values())]
    for name, scores in results.items():
        cells = [f"{100 * of.mean():.1f} ± {100 * _error(of):.1f}" for of in scores]
        lines.append(f"{name:20}" + "".join(f"{cell:>28}" for cell in cells))
    lines.append("By chance 10, 10, 0 and 50. Ten labels are used in all, one to name each concept.")
    return "\n".join(lines)


def plot(results: Mapping[str, Scores]) -> Any:
    """A panel for each score, a row for each hierarchy."""
    from experiments.harness.plotting import figure, style

    canvas, panels = figure(1, len(TITLES), size=(14, 3.4))
    for (field, title), axes in zip(TITLES.items(), panels, strict=True):
        for row, (name, scores) in enumerate(results.items()):
            values, look = 100 * getattr(scores, field), style(1 if name.startswith("random") else 2)
            axes.plot(values, np.full(len(values), row), "o", color=look["color"], alpha=0.35, markersize=4)
            drawn = {"fmt": look["marker"], "color": look["color"], "markersize": 7, "capsize": 4}
            axes.errorbar(values.mean(), row, xerr=_error(values), **drawn)
        axes.axvline(CHANCE[field], color="grey", linestyle=":", linewidth=1.4)
        axes.set(xlabel=f"{title} (%)", ylim=(len(results) - 0.5, -0.5))
        axes.set_yticks(range(len(results)), list(results) if field == "named" else [""] * len(results))
    canvas.suptitle("A hierarchy taught by local rules answers for itself (dotted: chance; bars: one standard error)")
    return canvas


def show(completions: np.ndarray) -> Any:
    """Rows of images: half, completed, whole."""
    from experiments.harness.plotting import figure

    canvas, panels = figure(3, SHOWN, size=(1.25 * SHOWN + 1, 4.4))
    for row, (said, images) in enumerate(zip(("shown", "completed", "as it was"), completions, strict=True)):
        for axes, image in zip(panels[row], images, strict=True):
            axes.imshow(image.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        panels[row][0].set_ylabel(said)
    canvas.suptitle("The upper half of an image calls up prototypes, which complete it")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.hierarchy")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
