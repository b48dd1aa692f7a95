"""Runs all experiments in turn and writes a page with their results.

python -m experiments.gallery --help
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm.auto import tqdm

from experiments.gallery import exhibits, page
from experiments.gallery.exhibits import Exhibit
from experiments.gallery.outcome import INTERRUPTED, LOG, Outcome, clear, keep_record
from experiments.harness.failure import ExperimentError, exit_code


@dataclass(frozen=True)
class Config:
    """Run every experiment in its own process and show the results on one page, index.html in --out.

    The other experiments still run if one fails or disagrees with theory; the page reports it, and the exit code is 1.
    After Ctrl-C the page shows the finished experiments.
    """

    out: Path = Path("results")
    """Folder for the page, with one subfolder for each experiment."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ()
    """Experiments to run, by default all; the page shows the existing results of the others."""
    quick: bool = False
    """Run the small versions, in about ten minutes in total."""
    keep: bool = False
    """Skip experiments that the gallery has already run successfully with the same command."""
    publish: Path | None = None
    """Also write a light copy of the page, without most of the data, to this folder; the handbook's is docs/gallery."""


def run(config: Config) -> list[Outcome]:
    """Runs the experiments in turn, updating the page after each; returns their outcomes.

    Raises:
      ExperimentError: if a name or folder is invalid, or an experiment fails or disagrees with theory.
    """
    chosen = _chosen(config.only)
    outcomes = []
    with tqdm(chosen, unit="experiment") as bar:
        for exhibit in bar:
            bar.set_postfix_str(exhibit.name)
            try:
                if not (config.keep and Outcome.read(exhibit, config.out).is_of(_command(exhibit, config))):
                    _perform(exhibit, config)
            finally:  # also after Ctrl-C
                outcomes.append(Outcome.read(exhibit, config.out))
                shown = page.write(exhibits.EXHIBITS, config.out)
            bar.write(f"{exhibit.name:26}{outcomes[-1].status}")
    print(f"page: {shown}")
    if config.publish:
        print(f"published: {page.publish(exhibits.EXHIBITS, config.out, config.publish)}")
    bad = [f"{outcome.folder.name} ({outcome.status})" for outcome in outcomes if not outcome.good]
    if bad:
        raise ExperimentError(f"some experiments did not succeed: {', '.join(bad)}; see {LOG} in their folders")
    return outcomes


def _chosen(only: Sequence[str]) -> list[Exhibit]:
    names = [exhibit.name for exhibit in exhibits.EXHIBITS]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ExperimentError(f"--only: no experiment {', '.join(unknown)}; there are {', '.join(names)}")
    return [exhibit for exhibit in exhibits.EXHIBITS if exhibit.name in only or not only]


def _command(exhibit: Exhibit, config: Config) -> list[str]:
    """Returns the command as typed in a shell."""
    return ["python", "-m", exhibit.module, "--out", str(config.out / exhibit.name), *["--quick"] * config.quick]


def _perform(exhibit: Exhibit, config: Config) -> None:
    """Runs one experiment and records its outcome; raises KeyboardInterrupt afterwards if Ctrl-C interrupted it."""
    command, folder, began = _command(exhibit, config), clear(exhibit, config.out), time.perf_counter()
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}  # show only the gallery's progress bar
    with (
        (folder / LOG).open("w") as log,
        subprocess.Popen([sys.executable, *command[1:]], stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the experiment receives it too and saves its results so far
            process.wait()
            code = INTERRUPTED
    keep_record(exhibit, config.out, command=command, seconds=round(time.perf_counter() - began, 1), exit_code=code)
    if code == INTERRUPTED:
        raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.gallery")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
