"""Compares credit by layer: one step of backprop (seed 001 §2), and four estimators on digits.

python -m experiments.credit --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

import nl_jax as nl
from experiments.credit.comparison import Comparison, compare
from experiments.credit.report import SHOWN, plot, show, table
from experiments.credit.step import by_formula, distance, seed_network
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from experiments.harness.settings import at_least

ROUNDINGS = 100.0  # allowed difference from the seed's formulas, in units of float64's resolution
ERRORS = 5.0  # allowed difference of node perturbation from theory, in standard errors
EXACT = nl.backprop, nl.backprop_recursion, nl.lagrangian_backprop


@dataclass(frozen=True)
class Config:
    """Draw the values and the credit of a network's units for one step of backprop; then compare estimators' credit.

    Exits with 1 unless three estimators return the seed's δ and γ and take its step, and node perturbation's error
    agrees with theory. Prints a table and writes config.json, credit.json, credit.npz, credit.png and layers.png to
    --out.
    """

    out: Path = Path("results/credit")
    """Folder for the results; replaces files of an earlier run."""
    units: int = 24
    """Units of each hidden layer of the digits network on which estimators are compared."""
    depth: int = 4
    """Hidden layers of that network."""
    images: int = 200
    """Number of digits in the batch, out of 1,437."""
    samples: int = 64
    """Noisy passes per node perturbation estimate, K."""
    estimates: int = 40
    """Number of node perturbation estimates, for the standard errors."""
    quick: bool = False
    """Run a small version: 50 digits and 10 estimates, in a few seconds."""


def run(config: Config) -> Comparison:
    """Takes the step, compares the estimators, and saves the results.

    Raises:
      ExperimentError: if a setting or folder is invalid, or a formula or the theory does not hold.
    """
    if config.quick:
        config = dataclasses.replace(config, images=min(config.images, 50), estimates=min(config.estimates, 10))
    at_least(config, units=1, depth=1, images=SHOWN, samples=1, estimates=2)
    outputs = ("credit.json", "credit.npz", "credit.png", "layers.png")
    folder = Folder(config.out, config, outputs=outputs)
    with jax.enable_x64(True):
        net, params, x, target = seed_network()
        step = by_formula(params, x, target)
        roundings = {make.__name__: distance(make, net, params, x, target, step) for make in EXACT}
        compared = compare(
            units=config.units, depth=config.depth, images=config.images, samples=config.samples,
            estimates=config.estimates,
        )  # fmt: skip
    parts = max(max(roundings.values()) / ROUNDINGS, compared.deviation / ERRORS)
    verdict = Verdict(parts, 1.0, "times the allowed deviation")
    judged = {"roundings": roundings, "standard_errors": compared.deviation, "step": step._asdict()}
    measured = {name: value for name, value in compared._asdict().items() if name != "delta"}
    folder.data("credit", {**verdict._asdict(), **judged, **measured})
    folder.arrays("credit", {f"{e}/{layer}": d for e, of in compared.delta.items() for layer, d in of.items()})
    folder.picture("credit", plot(net, x, step, compared))
    folder.picture("layers", show(compared))
    print(table(step, roundings, compared))
    print(f"pictures and data: {folder.path} ({', '.join(outputs)}, config.json)")
    if not verdict.agrees:
        found = f"roundings {max(roundings.values()):.2g}, standard errors {compared.deviation:.2g}"
        raise ExperimentError(f"the credit is not that of the formulas: {found}")
    return compared


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.credit")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
