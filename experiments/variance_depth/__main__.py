"""Variance of weight and node perturbation against depth in nonlinear networks (seed 000, which of them scales).

python -m experiments.variance_depth --help
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.random_networks import CASES
from experiments.harness.results import Folder
from experiments.harness.settings import at_least
from experiments.variance_depth.figure import plot
from experiments.variance_depth.measuring import SPACES, Measurement, Sampled, measure
from experiments.variance_depth.report import judge, scaling, table


@dataclass(frozen=True)
class Config:
    """Measure the relative variance of both perturbations in random networks of many depths and widths.

    Every estimate has one sample, on one example, with the exact directional derivative. This is the limit of small
    noise, in which the laws hold however small a network's axons (activity) become. Each network's variance is compared
    with the law given its own axons and credit. The exponents in depth and width are compared with the linear law, in
    which the variance is the number of weights or of nodes. Prints a table and writes config.json, metrics.jsonl,
    variance_depth.json, variance_depth.npz and variance_depth.png to --out. Fails if a law and its measurement
    disagree beyond chance.
    """

    out: Path = Path("results/variance_depth")
    """Folder for the results; files of an earlier run there are replaced."""
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of layers with weights, two or more, rising."""
    widths: tuple[int, ...] = (8, 16, 32)
    """Units per layer, one or more numbers, rising."""
    networks: int = 16
    """Random networks of each kind, depth and width, at least 5; each has its own example."""
    estimates: int = 300
    """Estimates of each gradient, at least 100."""
    quick: bool = False
    """A small version, three depths at one width, in under half a minute."""


def run(config: Config) -> list[Measurement]:
    """Measures at every width and depth in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a law and its measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[::2], widths=config.widths[1:2] or config.widths,
            networks=min(config.networks, 10), estimates=min(config.estimates, 200),
        )  # fmt: skip
    _check(config)
    folder = Folder(config.out, config, outputs=[f"variance_depth.{kind}" for kind in ("npz", "json", "png")])
    found: list[Measurement] = []
    for width, depth in tqdm(list(itertools.product(config.widths, config.depths)), unit="size"):
        with jax.enable_x64(True):  # gradients may be very small
            found += measure(depth, width, config.networks, config.estimates)
        for one in found[-len(CASES) * len(SPACES) :]:
            log, error = one.sampled.log_variance
            folder.metric(
                case=one.case, space=one.space, depth=depth, width=width, variance=np.exp(log), log_error=error,
                law=np.exp(np.log(one.sampled.law).mean()), linear_law=one.linear_law,
                cosine=one.sampled.cosines.mean(), deviation=one.sampled.deviation,
            )  # fmt: skip
    verdict = judge(found)
    folder.arrays(
        "variance_depth",
        {field: [getattr(one, field) for one in found] for field in ("case", "space", "depth", "width")}
        | {field: [getattr(one.sampled, field) for one in found] for field in Sampled._fields},
    )
    laws = {f"{case}, {space}": scaling(found, case, space)._asdict() for case in CASES for space in SPACES}
    folder.data("variance_depth", {**verdict._asdict(), "compared": len(found), "exponents": laws})
    picture = folder.picture("variance_depth", plot(found))
    print(table(found))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, .npz, metrics.jsonl, config.json)")
    verdict.insist()
    return found


def _check(config: Config) -> None:
    for name, fewest in (("depths", 2), ("widths", 1)):
        values = getattr(config, name)
        if len(values) < fewest or min(values) < 1 or sorted(set(values)) != list(values):
            raise ExperimentError(f"--{name} must be {fewest} or more rising numbers of at least 1, got {values}")
    at_least(config, networks=5, estimates=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.variance_depth")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
