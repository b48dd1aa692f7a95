"""Loggers: to a file, TensorBoard or Weights & Biases; and the evaluation of held-out data.

Each makes a function for the argument `log` of `nl.fit`, `nl.restarts` and `nl.sweep`. A row has the step (the number
of steps taken), the loss, and every number that `record` kept, by its path in the tree:
`{"step": 3, "loss": 0.5, "evaluations": 5}`. The elements of arrays have names that end in their indices, such as
"loss/0" and "loss/1" for the runs of `restarts`; complex numbers have two, which end in "/real" and "/imag". A record
that has the name of another column must have its value, as the `loss` of `info` has; otherwise a ValueError names it.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator
from csv import DictWriter, reader
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from nl_jax._core.paths import path_name
from nl_jax._core.require import positive_integer, takes
from nl_jax.base import Params
from nl_jax.training.files import write
from nl_jax.training.outcome import Report


class Writer(Protocol):
    """The interface that the writers of TensorBoard, PyTorch and tensorboardX have in common."""

    def add_scalar(self, tag: str, data: float, step: int, /) -> Any: ...
    def flush(self) -> Any: ...


def csv(path: str | Path, *, every: int = 1) -> Callable[[Report], None]:
    """Writes rows to a CSV file, with a header.

    A resumed run appends its rows; rows of steps that it repeats are removed first.

    Args:
      path: path of the file. A file of an earlier run is overwritten, unless the run begins at a step in that file.
      every: steps between two rows.

    Raises:
      ValueError: if `every` is not a whole number of at least 1; when run, if a continued file has other columns.

    >>> import jax.numpy as jnp, optax, tempfile, nl_jax as nl
    >>> learner = nl.learner(nl.backprop(lambda w, batch: w**2 + 0 * batch), optax.sgd(0.25))
    >>> start = learner.init(jax.random.key(0), jnp.float32(1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = nl.logs.csv(Path(folder, "loss.csv"))
    ...     _ = nl.fit(learner, jax.random.key(1), start, jnp.zeros(1), num_steps=2, log=log, progress=False)
    ...     print(Path(folder, "loss.csv").read_text())
    step,loss,evaluations
    1,1.0,3
    2,0.25,3
    """
    path, every = Path(path), positive_integer("every", every)

    def log(report: Report) -> None:
        if report.is_first:
            _keep(path, lambda line: int(line.partition(",")[0]), report.step, header=True)
            return
        rows = list(_rows(report, every))
        if not rows:
            return
        with path.open("a+", newline="") as file:
            file.seek(0)
            header = next(reader(file), None)
            if header is not None and header != list(rows[0]):
                raise ValueError(f"{path} has columns {header}, this run has {list(rows[0])}: name another file")
            writer = DictWriter(file, list(rows[0]), lineterminator="\n")
            if header is None:
                writer.writeheader()
            writer.writerows(rows)

    return _by_one_process(log)


def json_lines(path: str | Path, *, every: int = 1) -> Callable[[Report], None]:
    """Writes rows to a file with one JSON object per line; NaN and infinity become null.

    Args:
      path: path of the file, continued as by `nl.logs.csv`.
      every: steps between two rows.

    Raises:
      ValueError: if `every` is not a whole number of at least 1.
    """
    path, every = Path(path), positive_integer("every", every)

    def log(report: Report) -> None:
        if report.is_first:
            _keep(path, lambda line: json.loads(line)["step"], report.step, header=False)
            return
        with path.open("a") as file:
            for row in _rows(report, every):
                finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
                file.write(json.dumps(finite) + "\n")

    return _by_one_process(log)


def tensorboard(target: str | Path | Writer, *, every: int = 1) -> Callable[[Report], None]:
    """Writes rows as TensorBoard scalars.

    Args:
      target: a folder (needs tensorboard), or a writer with `add_scalar` and `flush`, such as PyTorch's SummaryWriter.
      every: steps between two rows.

    Raises:
      ImportError: if `target` is a folder and tensorboard is not installed.
      ValueError: if `every` is not a whole number of at least 1.
    """
    every = positive_integer("every", every)
    if isinstance(target, str | Path):
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ImportError("logs.tensorboard of a folder needs tensorboard: pip install tensorboard") from error
        writer: Any = Writer(str(target))
    else:
        writer = target

    def log(report: Report) -> None:
        for row in _rows(report, every):
            step = row.pop("step")
            for name, value in row.items():
                writer.add_scalar(name, value, step)
        writer.flush()

    return _by_one_process(log)


def wandb(run: Any, *, every: int = 1) -> Callable[[Report], None]:
    """Sends rows to a run of Weights & Biases.

    Args:
      run: returned by `wandb.init(...)`. When resumed, Weights & Biases keeps the rows of steps that it already has.
      every: steps between two rows.

    Raises:
      ValueError: if `every` is not a whole number of at least 1.
    """
    every = positive_integer("every", every)

    def log(report: Report) -> None:
        for row in _rows(report, every):
            step = row.pop("step")
            run.log(row, step=step)

    return _by_one_process(log)


class evaluate:  # noqa: N801, used as a function, like the others
    """Evaluates the parameters during training, such as by the accuracy on held-out examples.

    Shows the newest value beside the progress bar and keeps all; a resumed run keeps those since it was resumed.

    Args:
      score: `score(params)` returns a number; it is compiled. With `nl.restarts` and `nl.sweep` every run is scored.
      every: steps between two evaluations. One takes place at the first dispatch that reaches a multiple of it;
        shorter dispatches (`steps_per_dispatch`) are more exact.
      name: the name to show.

    Attributes:
      steps: numbers of steps taken, a list; the first is that before training. Each group of a sweep begins anew.
      values: the scores, a list of numbers, or of arrays with one for each run of a report.

    Raises:
      ValueError: if a setting is not as described.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> learner = nl.learner(nl.backprop(lambda w, batch: (w - batch) ** 2), optax.sgd(0.25))
    >>> held_out = nl.logs.evaluate(lambda w: (w - 2) ** 2, every=2)
    >>> state = learner.init(jax.random.key(0), jnp.float32(0))
    >>> at = {"num_steps": 4, "steps_per_dispatch": 2, "log": held_out, "progress": False}
    >>> _ = nl.fit(learner, jax.random.key(1), state, jnp.full(8, 2.0), **at)
    >>> held_out.steps, [float(value) for value in held_out.values]
    ([0, 2, 4], [4.0, 0.25, 0.015625])
    """

    def __init__(self, score: Callable[[Params], Any], *, every: int = 1, name: str = "score") -> None:
        takes("score", score, 1, "a function of the parameters, such as their accuracy on held-out examples")
        self._score, self._every, self._name = score, positive_integer("every", every), name
        self._compiled: dict[int, Callable[[Params], Any]] = {}
        self.steps: list[int] = []
        self.values: list[Any] = []

    def __call__(self, report: Report) -> dict[str, str]:
        """Evaluates if it is time; returns the newest value to show."""
        if report.is_first or report.step // self._every > self.steps[-1] // self._every:
            self.steps.append(report.step)
            self.values.append(self._value(report))
        return {self._name: f"{np.mean(self.values[-1]):.4g}"}

    def _value(self, report: Report) -> Any:
        runs = report.state.step.ndim
        if runs not in self._compiled:
            function = self._score
            for _ in range(runs):  # one run after another: all at once would hold the activations of all
                function = functools.partial(jax.lax.map, function)
            self._compiled[runs] = jax.jit(function)
        value = self._compiled[runs](report.state.params)
        if not isinstance(value, jax.Array) or value.shape != report.state.step.shape:
            found = jax.tree.map(lambda x: np.shape(x)[runs:], value)
            raise ValueError(f"score must return one number, got {found}: average over the examples")
        return np.asarray(value)[()]


def _by_one_process(log: Callable[[Report], None]) -> Callable[[Report], None]:
    """Calls the log in the first process only; processes that train together all have the same report."""

    def told(report: Report) -> None:
        if jax.process_index() == 0:
            log(report)

    return told


def _rows(report: Report, every: int) -> Iterator[dict[str, Any]]:
    """Yields a row for each step since the last report whose number is divisible by `every`."""
    if report.is_first:
        return
    axis, steps = report.losses.ndim - 1, report.losses.shape[-1]
    recorded = [(path_name(path) or "record", x) for path, x in jax.tree_util.tree_leaves_with_path(report.records)]
    for t in range(steps):
        step = report.step - steps + t + 1
        if step % every == 0:
            row: dict[str, Any] = {"step": step}
            for name, values in [("loss", report.losses), *recorded]:
                _add(row, _spread(name, np.take(values, t, axis=axis)))
            yield row


def _spread(name: str, value: np.ndarray) -> dict[str, Any]:
    """Returns the elements of an array by name; a complex number is two."""
    if np.iscomplexobj(value):
        return _spread(f"{name}/real", value.real) | _spread(f"{name}/imag", value.imag)
    return {"/".join((name, *map(str, index))): value[index].item() for index in np.ndindex(value.shape)}


def _add(row: dict[str, Any], columns: dict[str, Any]) -> None:
    """Adds columns to a row; raises a ValueError where one would replace another value, such as the row's own step."""
    for name, value in columns.items():
        there = row.setdefault(name, value)
        if value != there and not (math.isnan(value) and math.isnan(there)):
            raise ValueError(
                f"record keeps {name!r} = {value}, but the row of step {row['step']} has another {name!r} already, "
                f"{there}: give what you record another name"
            )


def _keep(path: Path, step: Callable[[str], int], last: int, header: bool) -> None:
    """Keeps a file's lines up to step `last`; later steps will be logged again. With `last` 0 no line is kept."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    first, rows = (lines[:1], lines[1:]) if header else ([], lines)
    whole = [line for line in rows if line.endswith("\n")]  # a process may have ended in the middle of a line
    kept = [line for line in whole if step(line) <= last]
    text = "".join([*first, *kept] if kept else [])
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda file: file.write(text.encode()))
