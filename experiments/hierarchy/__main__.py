"""A hierarchy that learns by local rules alone, without labels, and classifies images itself.

python -m experiments.hierarchy --help
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness import data
from experiments.harness.data import Split
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder, Verdict
from experiments.harness.settings import at_least
from experiments.hierarchy.network import Size
from experiments.hierarchy.report import judge, plot, show, table
from experiments.hierarchy.scoring import KINDS, SHOWN, WHOLE, Scores, answered


@dataclass(frozen=True)
class Config:
    """Teach a hierarchy by local rules alone, without labels, and classify images with it.

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
                    functools.partial(answered, kind, seed, size, learned_from, questions, complete=shown),
                )
                found.setdefault(name, []).append(part["scores"])
                if shown:
                    completions = np.array(part["completions"])
                bar.update()
    results = {name: Scores(*np.array(scores).T) for name, scores in found.items()}
    judged = judge(results)[:2] if config.quick else judge(results)  # two seeds cannot resolve the others
    verdict = Verdict(max(one["deviation"] for one in judged), 1.0, "times the allowed deviation")
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
        raise ExperimentError(f"not confirmed: {'; '.join(wrong)}")
    return results


def _check(config: Config) -> tuple[Split, Split]:
    """Checks the settings; returns the training images and the images to test on."""
    at_least(config, features=1, memories=20, neighbours=1, images=100, validation=0, seeds=2)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.hierarchy")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
