"""Single examples compared with minibatches, at equal numbers of examples (seed 001 §4).

python -m experiments.minibatch --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive
from experiments.harness.sweep import Sets, scores, sweep, with_validation
from experiments.minibatch.report import ALLOWED, Results, Settings, arrays_of, plot, row, table, verdict
from experiments.minibatch.student import student_of

MOMENTS = 40  # measurements of the network


@dataclass(frozen=True)
class Config:
    """Train a linear student and a network by the gradient of a sum over B examples, for several B.

    The student's error has a law: single examples need the fewest examples, and batches of B need hardly more while B
    is below the number of inputs. Exits with 1 if the student does not follow the law. The network learns digits from
    the same number of examples at every B and rate; validation chooses the rate. Prints a table and writes config.json,
    metrics.jsonl, minibatch.json, minibatch.npz and minibatch.png to --out.
    """

    out: Path = Path("results/minibatch")
    """Folder for the results; files of an earlier run there are replaced."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """B, rising numbers of examples per step, each a divisor of the last."""
    inputs: int = 30
    """N, inputs of the linear student."""
    students: int = 400
    """Independent runs of the linear student."""
    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer of the network (tanh)."""
    rates: tuple[float, ...] = (0.003, 0.006, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3)
    """Learning rates of the network to try: they scale the gradient of the sum over the batch, not of the mean."""
    examples: int = 20_480
    """Examples that the network learns from at each B and rate, drawn with replacement."""
    target: float = 0.2
    """Loss in nats that the network has to reach; the examples until then are counted."""
    seeds: int = 5
    """Independent runs of the network for each B and rate."""
    quick: bool = False
    """A small version: three values of B and a fifth of the examples, in about a quarter of a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that tables and figures need."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> Results:
    """Measures at every B in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if law and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, batches=config.batches[::3], examples=min(config.examples, 4096), seeds=min(config.seeds, 2),
            rates=config.rates[1::3],
        )  # fmt: skip
    _check(config)
    folder = Folder(config.out, config, outputs=[f"minibatch.{kind}" for kind in ("json", "npz", "png")])
    sets = with_validation(data.digits())
    mean = sets.train[0].mean(axis=0)
    sets = Sets(*((images - mean, labels) for images, labels in sets))
    largest = config.batches[-1]
    moments = np.unique(np.geomspace(1, config.examples // largest, MOMENTS).round().astype(int)) * largest
    results = Results({}, moments, {})
    network = nl.mlp([sets.train[0].shape[1], *config.hidden, 10], activation=nl.activations.tanh())
    estimator = nl.batch_sum(nl.backprop(nl.supervised(network.apply, nl.losses.cross_entropy)))
    learner, measure = lambda rate: nl.learner(estimator, optax.sgd(rate)), scores(network.apply)
    for B in tqdm(config.batches, unit="B"):
        results.student[B] = student_of(B, config.inputs, config.students)
        results.network[B] = sweep(
            learner, network.init, measure, sets,
            rates=config.rates, seeds=config.seeds, batch_size=B, moments=(moments // B).tolist(),
        )  # fmt: skip
        folder.metric(batch=B, deviation=results.student[B].deviation, **row(B, results, config.settings))
    found = verdict(results)
    deviations = {B: student.deviation for B, student in results.student.items()}
    folder.data(
        "minibatch",
        {
            **found._asdict(),
            "deviations": deviations,
            "rows": {B: row(B, results, config.settings) for B in deviations},
        },
    )
    folder.arrays("minibatch", arrays_of(results))
    folder.picture("minibatch", plot(results, config.settings))
    print(table(results, config.settings))
    print(f"picture and data: {folder.path} (minibatch.png, minibatch.npz, minibatch.json, config.json)")
    if not found.agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {found.largest_deviation:.1f} standard errors, where chance allows "
            f"{ALLOWED:g}"
        )
    return results


def _check(config: Config) -> None:
    batches = config.batches
    if (
        not batches
        or min(batches) < 1
        or sorted(set(batches)) != list(batches)
        or any(batches[-1] % B for B in batches)
    ):
        raise ExperimentError(f"--batches must be rising numbers of at least 1 that divide the last, got {batches}")
    at_least(config, inputs=1, students=2, examples=batches[-1], seeds=1, hidden=1)
    positive(config, "rates", "target")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.minibatch")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
