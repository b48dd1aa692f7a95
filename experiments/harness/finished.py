"""Stores the finished parts of a long run, so that it can be resumed."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nl_jax as nl
from experiments.harness.failure import ExperimentError

SETTINGS = "settings"


class Finished:
    """The finished parts of a run by name: a folder with `settings.json` and a file for each part.

    A part "a/b" is the file `a/b.json`; it is written atomically.

    Args:
      folder: the run's folder.
      config: the run's settings, a dataclass instance.
      resume: whether to continue from the parts that are there; otherwise they are removed and the run starts anew.
      but: names of settings that may differ between the interrupted and the resumed run.
      parts: name of the folder of parts in the run's folder.

    Raises:
      ExperimentError: if the run to resume had other settings, or a file cannot be read.
    """

    def __init__(
        self, folder: Path, config: Any, *, resume: bool, but: tuple[str, ...] = (), parts: str = "finished"
    ) -> None:
        self._folder = folder / parts
        own = {name: value for name, value in dataclasses.asdict(config).items() if name not in (*but, "out", "resume")}
        settings = json.loads(json.dumps({**own, "version": nl.__version__}, default=str))
        begun = self._file(SETTINGS).exists()
        if resume and begun:
            self._require(settings)
            return
        if begun:
            shutil.rmtree(self._folder)
        self[SETTINGS] = settings

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names of all finished parts, also those of earlier runs."""
        names = (path.relative_to(self._folder).with_suffix("") for path in self._folder.rglob("*.json"))
        return iter(sorted(name.as_posix() for name in names if name.as_posix() != SETTINGS))

    def __getitem__(self, name: str) -> Any:
        path = self._file(name)
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{path} cannot be read ({error}); remove it") from error

    def __setitem__(self, name: str, part: Any) -> None:
        """Stores a part, a tree of dicts, lists, numbers, strings and arrays; arrays become lists of numbers."""
        path = self._file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(json.dumps(part, default=lambda value: np.asarray(value).tolist(), indent=2) + "\n")
        beside.replace(path)

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns a finished part; computes and stores it if it is missing."""
        if name not in self:
            self[name] = compute()
        return self[name]

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _require(self, settings: dict[str, Any]) -> None:
        there = self[SETTINGS]
        for name in there.keys() | settings.keys():
            if there.get(name) != settings.get(name):
                differ = f"{name} is {there.get(name)} there, {settings.get(name)} here"
                raise ExperimentError(
                    f"the run in {self._folder.parent} has other settings, {differ}: choose another --out, or remove it"
                )
