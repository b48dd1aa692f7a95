"""Reads the results that an experiment run by the gallery left in its folder."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.gallery.exhibits import Exhibit
from experiments.harness.results import Verdict

RECORD = "gallery.json"
LOG = "log.txt"
RESULTS = ".json", ".jsonl", ".npz", ".png"  # files that experiments write
INTERRUPTED = 130  # exit code, by shell convention
_NO_NUMBER = re.compile(r"(?<!\w)nan(?!\w)")  # as Python and NumPy print it; prose spells it NaN


def has_nan(text: str) -> bool:
    """Whether printed text has a NaN, as a table does with an empty or failed measurement.

    >>> has_nan("loss 0.125 ±   nan"), has_nan("what is said of NaN, and nanometres")
    (True, False)
    """
    return _NO_NUMBER.search(text) is not None


@dataclass(frozen=True)
class Outcome:
    """Results of one exhibit: complete, partial or none. `read` finds them."""

    folder: Path
    about: dict[str, Any] | None
    """Content of `config.json`."""
    record: dict[str, Any] | None
    """Command, seconds and exit code of the run that left the results; None if the gallery did not run it."""
    verdict: Verdict | None
    """None for an exhibit that does not judge."""
    pictures: tuple[str, ...]
    data: tuple[str, ...]
    """File names."""

    @classmethod
    def read(cls, exhibit: Exhibit, out: Path) -> "Outcome":
        """The outcome in `out/name`."""
        folder = out / exhibit.name
        about, record = (_json(folder / name) for name in ("config.json", RECORD))
        if record is not None and record["about"] != about:
            record = None  # the experiment was run there again since
        verdict, judged = None, _json(folder / f"{exhibit.name}.json") or {}
        if judged.keys() >= set(Verdict._fields):
            off = judged["largest_deviation"]
            verdict = Verdict(math.nan if off is None else off, judged["allowed"], judged["unit"])
        files = sorted(path.name for path in folder.glob("*") if path.is_file() and path.name != RECORD)
        return cls(
            folder, about, record, verdict,
            pictures=tuple(f"{name}.png" for name in exhibit.figures if f"{name}.png" in files),
            data=tuple(name for name in files if not name.endswith(".png")),
        )  # fmt: skip

    @property
    def status(self) -> str:
        """A word or two; "agrees" and "illustration" (which has no theory to be judged by) are good."""
        exit_code = self.record["exit_code"] if self.record else 0
        if exit_code == INTERRUPTED:
            return "interrupted"
        if self.verdict is not None and not self.verdict.agrees:
            return "disagrees"
        if exit_code:
            return "failed"
        if self.record is None and not self.pictures:
            return "not run"
        if has_nan(self.log):
            return "printed a NaN"
        return "agrees" if self.verdict else "illustration"

    @property
    def good(self) -> bool:
        """Whether the run completed without a failure, a disagreement or a NaN."""
        return self.status in ("agrees", "illustration")

    def is_of(self, command: list[str]) -> bool:
        """Whether this is the good outcome of exactly this command, so that another run is unnecessary."""
        return self.good and self.record is not None and self.record["command"] == command

    @property
    def log(self) -> str:
        """What the experiment printed."""
        path = self.folder / LOG
        return path.read_text(errors="replace") if path.exists() else ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # never written, or incompletely
        return None


def clear(exhibit: Exhibit, out: Path) -> Path:
    """Returns the exhibit's folder, created if necessary, without earlier results that could pass for new ones."""
    folder = out / exhibit.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix in RESULTS or path.name == LOG:
            path.unlink()
    return folder


def keep_record(exhibit: Exhibit, out: Path, **values: Any) -> None:
    """Records how a run went and its `config.json`, by which `read` notices a later run in the folder."""
    folder = out / exhibit.name
    about = _json(folder / "config.json")
    (folder / RECORD).write_text(json.dumps({**values, "about": about}, indent=2) + "\n")
