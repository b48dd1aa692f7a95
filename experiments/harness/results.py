"""Writes an experiment's results to its folder; they are readable at any time."""

import dataclasses
import datetime
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness.failure import ExperimentError
from nl_jax._core.numerics import mean_and_error

FORMATS = "NL_JAX_FIGURES"
"""Environment variable that names figure formats to write besides PNG."""


class Verdict(NamedTuple):
    """Distance of measurement from theory: the first fields of `name.json` of an experiment that judges.

    Attributes:
      largest_deviation: of all comparisons; NaN, or null in the file, if any comparison was impossible.
      allowed: the largest deviation that statistics allow.
      unit: of both.
    """

    largest_deviation: float
    allowed: float
    unit: str = "standard errors"

    @property
    def agrees(self) -> bool:
        """Whether theory and measurement agree."""
        return self.largest_deviation <= self.allowed

    def insist(self, against: str = "law") -> None:
        """Fails unless theory and measurement agree.

        Args:
          against: what was compared with measurement, for the message.

        Raises:
          ExperimentError: with the largest deviation and what chance allows.
        """
        if not self.agrees:
            raise ExperimentError(
                f"{against} and measurement disagree: by {self.largest_deviation:.1f} {self.unit}, where chance allows "
                f"{self.allowed:.1f}"
            )


def with_error(values: np.ndarray, digits: int) -> str:
    """The mean over seeds and its standard error as text; "not reached" if a value is not finite."""
    mean, error = mean_and_error(values)
    return f"{mean:,.{digits}f} ± {error:,.{digits}f}" if math.isfinite(mean) else "not reached"


def verdict(deviations: Mapping[str, float]) -> Verdict:
    """The largest of several named deviations, each in units of what is allowed."""
    return Verdict(float(np.max(list(deviations.values()))), 1.0, "of what is allowed")


CHANCE = 1e-3
"""Probability that `by_chance` rejects a correct law."""


def by_chance(deviations: np.ndarray) -> Verdict:
    """The largest of all deviations, in standard errors, and the largest that chance allows among as many."""
    from scipy.stats import norm

    return Verdict(float(np.max(np.abs(deviations))), float(norm.isf(CHANCE / 2 / np.size(deviations))))


def judge(deviations: Mapping[str, float]) -> None:
    """Fails unless each deviation is within what is allowed.

    Raises:
      ExperimentError: that names the first deviation above 1.
    """
    for name, off in deviations.items():
        if not off <= 1:
            missed = f"{name!r} is off by {off:.1f} times what is allowed"
            raise ExperimentError(f"theory and measurement disagree: {missed}")


def page_style() -> str:
    """Returns the style sheet of the pages that experiments write."""
    return Path(__file__).with_name("page.css").read_text()


class Folder:
    """An output folder: `config.json`, `metrics.jsonl` (each line is saved when it is written), arrays and figures.

    Args:
      path: the folder; it is created if necessary.
      config: a dataclass instance; saved with the versions of Python and libraries.
      outputs: names of the other files that this run may write; those of an earlier run are removed, so that the folder
        does not mix two runs.

    Raises:
      ExperimentError: if the folder is not writable.
    """

    def __init__(self, path: Path, config: Any, outputs: Iterable[str] = ()) -> None:
        self.path = path
        about = {
            "config": dataclasses.asdict(config),
            "versions": {name: version(name) for name in ("nl_jax", "jax", "jaxlib", "optax", "numpy")},
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "devices": [str(device.device_kind) for device in jax.devices()],
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", *outputs):
                (path / name).unlink(missing_ok=True)
            (path / "config.json").write_text(json.dumps(about, indent=2, default=str) + "\n")
        except OSError as error:
            raise ExperimentError(f"--out {path} cannot be written to: {error.strerror or error}") from error

    def metric(self, **values: Any) -> None:
        """Appends one line to `metrics.jsonl`; arrays become lists; NaN and infinity become null."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(plain(values), allow_nan=False) + "\n")

    def data(self, name: str, values: Any) -> None:
        """Writes `name.json`; arrays become lists; NaN and infinity become null."""
        (self.path / f"{name}.json").write_text(json.dumps(plain(values), indent=2, allow_nan=False) + "\n")

    def arrays(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes `name.npz`."""
        arrays = {key: np.asarray(value) for key, value in values.items()}
        np.savez_compressed(self.path / f"{name}.npz", allow_pickle=False, **arrays)

    def picture(self, name: str, figure: Any) -> Path:
        """Writes `name.png`, and the formats in the environment variable NL_JAX_FIGURES, such as "pdf svg".

        Raises:
          ExperimentError: for a format that matplotlib cannot write.
        """
        path = self.path / f"{name}.png"
        figure.savefig(path, dpi=110)
        for kind in os.environ.get(FORMATS, "").split():
            try:
                figure.savefig(path.with_suffix(f".{kind}"))
            except ValueError as error:
                raise ExperimentError(f"{FORMATS} names {kind!r}: {error}") from error
        return path


def plain(value: Any) -> Any:
    """Returns a tree as standard JSON has it: arrays become lists; NaN and infinity become None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
