"""Logs a training run as a list of numbers, from which `replay` repeats it."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nl_jax._core.require import positive_integer
from nl_jax.base import Batch, GradientEstimator, Key, Params
from nl_jax.training.files import write
from nl_jax.training.in_place import Past, Update, coefficients_of
from nl_jax.training.replay_records import (
    checksum,
    header_of,
    past_of,
    read_header,
    read_records,
    record_of,
    save_snapshot,
)

_OF_KEYS = "generator", "key"  # entries of the header that the run's first report sets


class TrainingLog:
    """A folder that records every update of a run of `nl.seeded`: for each step a key, a scale and K rates.

    Pass it to `nl.fit` as `log`. It appends a dispatch's steps in one write, flushed to disk, before the next begins.
    A record left unfinished by a crash is detected by its checksum and dropped. Steps already in the folder are
    compared with the new ones, so the same run may be started again; another run raises an error.

    Args:
      folder: created if it does not exist.
      estimator: the learner's estimator.
      params: its parameters, or their shapes.
      batch: a batch, or its shapes. It sets the number of rates for samplers that give every example its own
        directions.
      momentum: the momentum given to `nl.seeded`.
      window: the window given to `nl.seeded`.
      snapshot_every: interval in steps at which all parameters are saved as well, so that a replay need not begin at
        the first step; None for never.

    Attributes:
      steps: number of complete records in the folder.
      bytes_per_step: size of a record.

    Raises:
      ValueError: if the folder belongs to another run, or the estimator has a state, which a log cannot keep.

    >>> import jax, jax.numpy as jnp, nl_jax as nl, numpy as np, tempfile
    >>> objective = lambda w, batch: (batch @ w - 1) ** 2
    >>> estimator, data, first = nl.weight_perturbation(objective, num_samples=4), jnp.eye(2), jnp.zeros(2)
    >>> learner = nl.seeded(estimator, 0.05)
    >>> log = TrainingLog(tempfile.mkdtemp(), estimator, first, data)
    >>> state = learner.init(jax.random.key(0), first)
    >>> state, _ = nl.fit(learner, jax.random.key(1), state, data, num_steps=100, log=log, progress=False)
    >>> bool(np.array_equal(nl.replay(first, log), state.params)), log.steps, log.bytes_per_step
    (True, 100, 40)
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        estimator: GradientEstimator,
        params: Params,
        batch: Batch,
        *,
        momentum: float = 0.0,
        window: int = 8,
        snapshot_every: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.snapshot_every = None if snapshot_every is None else positive_integer("snapshot_every", snapshot_every)
        self.header = header_of(estimator, params, batch)
        coefficients = np.asarray(coefficients_of(momentum, window), np.float32)
        if momentum:
            self.header["momentum"] = coefficients.tolist()
        self._momentum = coefficients
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            there = read_header(self.folder)
        except FileNotFoundError:
            there = self.header
            self._write_header()
        self.header |= {name: there[name] for name in _OF_KEYS if name in there}
        if there != self.header:
            wrong = [name for name in there | self.header if there.get(name) != self.header.get(name)]
            raise ValueError(
                f"log folder {self.folder} belongs to another run: {', '.join(wrong)} differ. Take a new folder"
            )
        self._record = record_of(self.header)
        self.steps = len(read_records(self.folder, self._record))
        path = self.folder / "updates.bin"
        path.touch()
        os.truncate(path, self.steps * self.bytes_per_step)  # removes a record left unfinished by a crash

    @property
    def bytes_per_step(self) -> int:
        return self._record.itemsize

    def __call__(self, report: Any) -> None:
        """Appends the steps of a dispatch, as `nl.fit` reports them."""
        if report.key.ndim:
            raise ValueError(
                f"a training log records one run, this report is of {report.key.size} runs: train each by nl.fit, with "
                "a folder of its own"
            )
        if report.is_first:
            self._begin(report.key)
        else:
            updates: Any = getattr(report.records, "update", None)
            self.append(updates, report.step, report.state.params)

    def _begin(self, key: Key) -> None:
        """Takes the generator of keys from the run's; raises a ValueError if there are records of another."""
        generator = str(jax.random.key_impl(key))
        if generator == self.header["generator"]:
            return
        if self.steps:
            raise ValueError(
                f"log folder {self.folder} belongs to another run: its keys are of {self.header['generator']}, this "
                f"run's of {generator}. Take a new folder"
            )
        self.header |= {"generator": generator, "key": jax.random.key_data(key).size}
        self._record = record_of(self.header)
        self._write_header()

    def _write_header(self) -> None:
        write(self.folder / "header.json", lambda file: file.write(json.dumps(self.header, indent=1).encode()))

    def append(self, updates: Update, step: int, params: Params) -> None:
        """Appends updates, stacked over steps.

        Args:
          updates: `info.update` of some steps.
          step: number of steps taken after the last of them.
          params: the parameters after it, saved as a snapshot when one is due.

        Raises:
          ValueError: if steps before these are missing, the folder has different updates for the same steps, or keys
            are of another generator than the run's (without `nl.fit`, than `jax.random.key`'s).
        """
        records = self._records(updates, step)
        first = step - len(records)
        if first > self.steps:
            raise ValueError(f"log folder {self.folder} ends at step {self.steps}, these begin at step {first}")
        known = read_records(self.folder, self._record)[first:step] if first < self.steps else records[:0]
        if known.tobytes() != records[: len(known)].tobytes():
            raise ValueError(f"log folder {self.folder} has other updates from step {first} on: it is another run's")
        new = records[len(known) :]
        with (self.folder / "updates.bin").open("ab") as file:
            file.write(new.tobytes())
            file.flush()
            os.fsync(file.fileno())
        before, self.steps = self.steps, max(self.steps, step)
        if self.snapshot_every is not None and step // self.snapshot_every > before // self.snapshot_every:
            save_snapshot(self.folder, step, params)

    def past(self) -> Past | tuple[()]:
        """Returns the past gradients that momentum needs: `LearnerState.optimizer` after the last record.

        To resume a run from its log, start from `learner.init(key, nl.replay(params,
        log))._replace(step=jnp.int32(log.steps), optimizer=log.past())`.
        """
        window = len(self._momentum) - 1
        return past_of(read_records(self.folder, self._record), window) if window else ()

    def _records(self, updates: Update, step: int) -> np.ndarray:
        if not isinstance(updates, Update):
            raise ValueError("a training log needs the records of nl.seeded's steps, `info` itself, which nl.fit keeps")
        key, scale, rates, momentum = (np.asarray(part) for part in updates)
        if momentum.shape[1:] != self._momentum.shape or (momentum != self._momentum).any():
            raise ValueError(
                "momentum and window of a training log must be those of nl.seeded, whose coefficients are "
                f"{momentum[0].tolist()}; got {self._momentum.tolist()}"
            )
        if key.shape[1:] != self._record["key"].shape:
            raise ValueError(
                f"keys must be of {self.header['generator']}, of {self.header['key']} words, these have "
                f"{key.shape[-1]}: take such keys, or pass the log to nl.fit, which tells it the generator"
            )
        records = np.zeros(len(scale), self._record)
        records["step"] = np.arange(step - len(scale), step)
        records["key"], records["scale"], records["rates"] = key, scale, rates
        records["checksum"] = [checksum(record) for record in records]
        return records
