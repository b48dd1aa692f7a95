"""Checkpoints: a run that ends at any instant can be resumed from its folder.

    run.json              identifies the run
    steps/600/            the state after step 600, saved by orbax; the newest `KEPT` are kept
    history/400-600.npz   the records of the steps in between; all are kept
    seals/600.json        written last: the position of the data, and the checksums of all files of step 600

A step without a seal was not saved completely and is ignored. With several processes, each has its own history and
seals, and all must have access to the folder.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from nl_jax._core.paths import path_name
from nl_jax.training.files import abstract, checksum, described, filled, plain, quiet, reason, write

KEPT = 3
"""How many of the newest states are kept, in case one is damaged."""


class Saved(NamedTuple):
    """The point from which a run is resumed.

    Attributes:
      step: number of steps taken.
      state: the state after them.
      records: their records, in parts.
      position: the position of the data source.
      finished: whether `log` ended the run here.
    """

    step: int
    state: Any
    records: list[Any]
    position: str | None
    finished: bool


class Checkpoints:
    """A run's checkpoint folder: created if it does not exist, compared with the run if it does.

    Args:
      folder: path of the folder.
      about: strings that distinguish this run from others.
      first_step: number of the run's first step.
      state: a state of the run, for its shapes and dtypes.

    Raises:
      ImportError: without orbax.
      ValueError: if the folder belongs to another run, or to no run.
      OSError: if it cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike, about: Mapping[str, str], first_step: int, state: Any) -> None:
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError("checkpoint needs orbax: pip install 'nl_jax[checkpoint]', or leave it out") from error
        self._folder = Path(folder).absolute()
        self._process = f".{jax.process_index()}" if jax.process_count() > 1 else ""
        self._leads = jax.process_index() == 0
        self.step = self._first_step = first_step
        self._claim({**about, "first step": str(first_step)}, described(state))
        self._args, self._orbax = ocp.args, ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def newest(self, like: Any, recorded: Callable[[], Any], step_axis: int) -> Saved | None:
        """Loads the newest step, or None; its state is placed as `like` is.

        Records have the tree, shapes and dtypes of `recorded()`, one step's, and an axis of steps.
        """
        whole = self._whole()
        step = max(whole, default=self._first_step)
        with self._writing(step):
            self._remove(lambda number: number not in whole)
            for path in (self._folder / "history").glob(f"*{self._process}.npz"):
                if _span(path)[1] > step:
                    path.unlink()
        if not whole:
            return None
        before = max(whole - {step}, default=None)
        newer = f"remove {self._folder / 'steps' / str(step)} to go on from step {before}"
        remedy = "name another folder to begin anew" if before is None else newer
        with self._reading(self._seal(step), remedy):
            seal = json.loads(self._seal(step).read_text())
        for name, expected in seal["files"].items():
            with self._reading(self._folder / name, remedy):
                if checksum(self._folder / name) != expected:
                    raise ValueError("its bytes differ from those that were written")
        with self._reading(self._folder / "steps" / str(step), remedy), quiet():
            place = self._folder / "steps" / str(step)
            found = self._orbax.restore(place, args=self._args.StandardRestore(abstract(like)))
        records = self._history(step, recorded(), step_axis)
        self.step = step
        return Saved(step, filled(like, found), records, seal["position"], seal["finished"])

    def save(self, step: int, state: Any, records: Any, position: str | None, finished: bool) -> None:
        """Saves a step, and the records since the last saved one. Once this returns, nothing is lost."""
        if step == self.step:
            return
        place = self._folder / "steps" / str(step)
        record = self._folder / "history" / f"{self.step}-{step}{self._process}.npz"
        with self._writing(step):
            write(record, lambda file: np.savez(file, allow_pickle=False, **_by_name(records)))
            with quiet():
                self._orbax.save(place, args=self._args.StandardSave(plain(state)), force=True)
            files = [record, *(path for path in place.rglob("*") if path.is_file() and self._leads)]
            sums = {str(path.relative_to(self._folder)): checksum(path) for path in files}
            seal = json.dumps({"position": position, "finished": finished, "files": sums}, indent=2)
            write(self._seal(step), lambda file: file.write(seal.encode()))
            self.step = step
            oldest = sorted(self._whole())[-KEPT:][0]
            self._remove(lambda number: number < oldest)

    def close(self) -> None:
        """Ends orbax's threads."""
        self._orbax.close()

    def _claim(self, about: dict[str, str], shapes: dict[str, str]) -> None:
        """Compares the folder's run with this one; in a new folder, writes what identifies this one."""
        file = self._folder / "run.json"
        if file.exists():
            with self._reading(file, "remove this file if the folder is of this run"):
                known = json.loads(file.read_text())
                about_known, shapes_known = known["run"], known["state"]
            self._compare("run", about_known, about)
            self._compare("network or optimizer", shapes_known, shapes)
            return
        ours = not self._folder.exists() or (self._folder / "steps").is_dir()
        if not ours and (not self._folder.is_dir() or any(self._folder.iterdir())):
            raise ValueError(f"checkpoint folder {self._folder} exists but holds no run: name another folder")
        if self._leads:
            with self._writing(self.step):
                for name in ("steps", "history", "seals"):
                    (self._folder / name).mkdir(parents=True, exist_ok=True)
                text = json.dumps({"run": about, "state": shapes}, indent=2)
                write(file, lambda opened: opened.write(text.encode()))

    def _compare(self, what: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
        for name in {**here, **there}:
            if there.get(name) != here.get(name):
                self._refuse(what, f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here")

    def _refuse(self, what: str, difference: str) -> NoReturn:
        raise ValueError(
            f"checkpoint folder {self._folder} belongs to another {what}: {difference}; continue with the "
            "settings it began with, or name another folder"
        )

    def _history(self, step: int, recorded: Any, step_axis: int) -> list[Any]:
        """Loads the records up to a step, in parts."""
        like, tree = _by_name(recorded), jax.tree.structure(recorded)
        parts: list[Any] = []
        while step > self._first_step:
            path = next((self._folder / "history").glob(f"*-{step}{self._process}.npz"), None)
            if path is None:
                break  # removed, as the error below advises
            remedy = f"remove it to go on without what was recorded until step {step}"
            with self._reading(path, remedy), path.open("rb") as opened, np.load(opened) as file:
                found = {name: file[name] for name in file.files}
            first = _span(path)[0]
            if not _alike(found, like, step - first, step_axis):
                self._refuse("run", "record kept other values there")
            leaves = [x.view(of.dtype) for x, of in zip(found.values(), like.values(), strict=True)]
            parts.insert(0, jax.tree.unflatten(tree, leaves))
            step = first
        return parts

    def _seal(self, step: int, process: str | None = None) -> Path:
        return self._folder / "seals" / f"{step}{self._process if process is None else process}.json"

    def _whole(self) -> set[int]:
        """Returns the steps that all processes have sealed."""
        processes = [f".{i}" for i in range(jax.process_count())] if self._process else [""]
        steps = [int(path.name) for path in (self._folder / "steps").iterdir() if path.name.isdigit()]
        return {step for step in steps if all(self._seal(step, process).exists() for process in processes)}

    def _remove(self, which: Callable[[int], bool]) -> None:
        """Removes some steps, seals first, and the remains of interrupted saves."""
        for path in (self._folder / "seals").glob(f"*{self._process}.json"):
            if which(int(path.name.partition(".")[0])):
                path.unlink()
        for path in (self._folder / "steps").iterdir() if self._leads else ():
            if not path.name.isdigit() or which(int(path.name)):
                shutil.rmtree(path)

    @contextlib.contextmanager
    def _reading(self, path: Path, remedy: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            message = f"checkpoint folder {self._folder}: {path} cannot be read ({reason(error)}): {remedy}"
            raise OSError(message) from error

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            newest = f"the newest saved is step {self.step}: " if self.step > self._first_step else ""
            raise OSError(
                f"checkpoint folder {self._folder} could not be written at step {step} ({reason(error)}); {newest}fix "
                "the cause, then repeat the same call to resume"
            ) from error


def _span(record: Path) -> tuple[int, int]:
    """Returns the numbers of steps taken before and after those of a records file: (400, 600) for "400-600.npz"."""
    first, last = record.name.partition(".")[0].split("-")
    return int(first), int(last)


def _by_name(records: Any) -> dict[str, Any]:
    """Returns the leaves of records by number, dtype and path, such as "0 float32 loss"."""
    leaves = jax.tree_util.tree_leaves_with_path(records)
    return {f"{number} {x.dtype} {path_name(path)}": x for number, (path, x) in enumerate(leaves)}


def _alike(found: dict[str, np.ndarray], like: dict[str, Any], steps: int, step_axis: int) -> bool:
    """Whether saved records have the names, shapes and dtypes of `like`, which has no axis of steps."""
    without_names = all(name.startswith("arr_") for name in found)  # as earlier versions saved them
    if len(found) != len(like) or (list(found) != list(like) and not without_names):
        return False

    def same(x: np.ndarray, of: Any) -> bool:
        # NumPy returns dtypes that it does not know, such as bfloat16, as bytes.
        dtypes = x.dtype == of.dtype or (x.dtype.kind == "V" and x.dtype.itemsize == of.dtype.itemsize)
        return dtypes and x.shape == (*of.shape[:step_axis], steps, *of.shape[step_axis:])

    return all(map(same, found.values(), like.values()))
