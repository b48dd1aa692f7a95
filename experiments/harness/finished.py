"""Stores the finished parts of a long run, so that it can be resumed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import nl_jax as nl
from experiments.harness.failure import ExperimentError

FILE = "finished.json"


class Finished:
    """The finished parts of a run by name, stored in a file that is replaced atomically.

    Args:
      folder: the run's folder.
      config: the run's settings, a dataclass instance.
      resume: whether to continue from the parts in the file; otherwise the run starts anew.
      but: names of settings that may differ between the interrupted and the resumed run.

    Raises:
      ExperimentError: if the run to resume had other settings, or its file cannot be read.
    """

    def __init__(self, folder: Path, config: Any, *, resume: bool, but: tuple[str, ...] = ()) -> None:
        own = {name: value for name, value in dataclasses.asdict(config).items() if name not in (*but, "out", "resume")}
        self._path = folder / FILE
        self._settings = json.loads(json.dumps({**own, "version": nl.__version__}, default=str))
        self._parts: dict[str, Any] = self._read() if resume and self._path.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def __setitem__(self, name: str, part: Any) -> None:
        """Stores a part, a tree of dicts, lists, numbers, strings and arrays; arrays become lists of numbers."""
        self._parts[name] = json.loads(json.dumps(part, default=_listed))
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps({"settings": self._settings, "finished": self._parts}) + "\n")
        beside.replace(self._path)

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns a finished part; computes and stores it if it is missing."""
        if name not in self:
            self[name] = compute()
        return self[name]

    def _read(self) -> dict[str, Any]:
        try:
            left = json.loads(self._path.read_text())
            there, parts = left["settings"], left["finished"]
        except (OSError, ValueError, KeyError) as error:
            raise ExperimentError(f"--resume: {self._path} cannot be read ({error}); start without it") from error
        for name in there.keys() | self._settings.keys():
            if there.get(name) != self._settings.get(name):
                differ = f"{name} is {there.get(name)} there, {self._settings.get(name)} here"
                raise ExperimentError(f"--resume: the run in {self._path.parent} has other settings, {differ}")
        return parts


def _listed(value: Any) -> Any:
    return np.asarray(value).tolist()
