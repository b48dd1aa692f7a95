"""Logs a training run as a list of numbers, and replays it without a forward pass."""

import functools
import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.deprecation import deprecated_argument
from nl_jax._core.paths import path_name
from nl_jax._core.require import nonnegative_integer, positive_integer, sample_function
from nl_jax.base import Batch, GradientEstimator, Key, Params
from nl_jax.estimators.noise import directions as samplers
from nl_jax.estimators.noise.directions import Sampler
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.estimators.noise.engine.sampled_gradient import Directions, SampledGradient
from nl_jax.training.files import write
from nl_jax.training.in_place import Past, Update, advanced, coefficients_of, nothing_yet

_KEPT = "key", "rates"
_OF_KEYS = "generator", "key"  # entries of the header that the run's first report sets
_AT_ONCE = 256  # steps repeated in one compiled call


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
    >>> bool(np.array_equal(replay(first, log), state.params)), log.steps, log.bytes_per_step
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
        self.header = _header(estimator, params, batch)
        coefficients = np.asarray(coefficients_of(momentum, window), np.float32)
        if momentum:
            self.header["momentum"] = coefficients.tolist()
        self._momentum = coefficients
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            there = _read_header(self.folder)
        except FileNotFoundError:
            there = self.header
            self._write_header()
        self.header |= {name: there[name] for name in _OF_KEYS if name in there}
        if there != self.header:
            wrong = [name for name in there | self.header if there.get(name) != self.header.get(name)]
            raise ValueError(
                f"log folder {self.folder} belongs to another run: {', '.join(wrong)} differ. Take a new folder"
            )
        self._record = _record(self.header)
        self.steps = len(_read(self.folder, self._record))
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
        self._record = _record(self.header)
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
        known = _read(self.folder, self._record)[first:step] if first < self.steps else records[:0]
        if known.tobytes() != records[: len(known)].tobytes():
            raise ValueError(f"log folder {self.folder} has other updates from step {first} on: it is another run's")
        new = records[len(known) :]
        with (self.folder / "updates.bin").open("ab") as file:
            file.write(new.tobytes())
            file.flush()
            os.fsync(file.fileno())
        before, self.steps = self.steps, max(self.steps, step)
        if self.snapshot_every is not None and step // self.snapshot_every > before // self.snapshot_every:
            leaves: dict[str, Any] = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}
            write(self.folder / f"snapshot-{step:09}.npz", lambda file: np.savez(file, **leaves))

    def past(self) -> Past | tuple[()]:
        """Returns the past gradients that momentum needs: `LearnerState.optimizer` after the last record.

        To resume a run from its log, start from `learner.init(key, nl.replay(params,
        log))._replace(step=jnp.int32(log.steps), optimizer=log.past())`.
        """
        window = len(self._momentum) - 1
        return _past(_read(self.folder, self._record), window) if window else ()

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
        records["checksum"] = [_checksum(record) for record in records]
        return records


def replay(
    params: Params,
    log: TrainingLog | str | os.PathLike,
    *,
    steps: int | None = None,
    directions: Sampler | None = None,
    law: Sampler | None = None,
) -> Params:
    """Repeats a run from its log, without a forward pass, and returns its parameters.

    With the samplers of `nl.directions` they are bitwise equal to the run's, on the same kind of device and version of
    JAX. With your own sampler they are equal up to rounding.

    Args:
      params: the run's first parameters. Where the log has a snapshot, their shapes suffice.
      log: a `TrainingLog` or its folder.
      steps: how many steps of the run to repeat, at least 0; by default all complete records.
      directions: the sampler of the directions; needed if it is not one of `nl.directions`.
      law: the old name of `directions`, for one release.

    Returns:
      The parameters after these steps.

    Raises:
      ValueError: if the log belongs to other parameters, has fewer steps, or names no sampler.
      FileNotFoundError: if the folder has no log.
    """
    if law is not None:
        deprecated_argument("replay", "law", "write directions=")
        directions = law
    folder = log.folder if isinstance(log, TrainingLog) else Path(log)
    header = _read_header(folder)
    records = _read(folder, _record(header))
    last = len(records) if steps is None else nonnegative_integer("steps", steps)
    if last > len(records):
        raise ValueError(f"steps must be at least 0 and at most the log's {len(records)}, got {steps}")
    if header["parameters"] != _described(params):
        raise ValueError(
            f"log folder {folder} belongs to other parameters: {_difference(header['parameters'], params)}"
        )
    first, params = _snapshot(folder, last, params)
    drawn = Directions.of(directions or _sampler(header["law"], folder), params, header["weights"])
    momentum = np.array(header.get("momentum", [1.0]), np.float32)
    past = _past(records[:first], len(momentum) - 1) if len(momentum) > 1 else ()
    for at in range(first, last, _AT_ONCE):
        some = records[at : min(at + _AT_ONCE, last)]
        updates = (jnp.asarray(some[name]) for name in ("key", "scale", "rates"))
        params, past = _repeated(drawn, header["generator"], params, past, (*updates, jnp.asarray(momentum)))
    return params


def _past(records: np.ndarray, window: int) -> Past:
    """Returns the last gradients of some records, newest first; gradients before the first step are 0."""
    key, rates = (np.zeros(records.dtype[name].shape, records.dtype[name].base) for name in _KEPT)
    past = nothing_yet(key, rates, window)
    newest = records[-window:][::-1]
    return Past(*(none.at[: len(newest)].set(newest[name]) for none, name in zip(past, _KEPT, strict=True)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _repeated(directions: Directions, generator: str, params: Params, past: Any, updates: Any) -> tuple[Params, Any]:
    *of_steps, momentum = updates

    def one(now: tuple[Params, Any], update: Any) -> tuple[tuple[Params, Any], None]:
        key, scale, rates = update
        like = SampledGradient(jax.random.wrap_key_data(key, impl=generator), rates, directions)
        return advanced(like, *now, Update(key, scale, rates, momentum)), None

    return jax.lax.scan(one, (params, past), tuple(of_steps))[0]


def _header(estimator: GradientEstimator, params: Params, batch: Batch) -> dict[str, Any]:
    sample = sample_function(estimator, "give the log the estimator of nl.seeded")
    key = jax.random.key(0)
    state = jax.eval_shape(estimator.init, key, params)
    if jax.tree.leaves(state):
        raise ValueError(
            "an estimator with a state of its own cannot be replayed, because no log keeps the state: take a baseline "
            "without one, such as nl.baselines.antithetic()"
        )
    sampled, _, _ = jax.eval_shape(sample, key, state, params, batch)
    sampler = sampled.directions.sampler
    return {
        "format": 1,
        "law": {"name": sampler.name, "settings": sampler.settings} if isinstance(sampler, NamedSampler) else None,
        "parameters": _described(params),
        "weights": [leaf.weight for leaf in sampled.directions.leaves],
        "rates": list(sampled.rates.shape),
        "dtype": str(sampled.rates.dtype),
        "generator": str(jax.random.key_impl(key)),
        "key": jax.random.key_data(key).size,
    }


def _described(params: Params) -> list[list[Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [[path_name(path), list(leaf.shape), str(jnp.dtype(leaf.dtype))] for path, leaf in leaves]


def _difference(described: list[list[Any]], params: Params) -> str:
    pairs = zip([*described, None], [*_described(params), None], strict=False)
    return next(f"it has {of} where these have {given}" for of, given in pairs if of != given)


def _record(header: dict[str, Any]) -> np.dtype:
    fields = [
        ("step", "<i8"), ("key", "<u4", (header["key"],)), ("scale", "<f4"),
        ("rates", np.dtype(header["dtype"]).newbyteorder("<"), tuple(header["rates"])), ("checksum", "<u4"),
    ]  # fmt: skip
    return np.dtype(fields)


def _checksum(record: np.void) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def _read(folder: Path, dtype: np.dtype) -> np.ndarray:
    """Returns the complete records, up to the first that is damaged or out of order."""
    path = folder / "updates.bin"
    content = path.read_bytes() if path.exists() else b""
    records = np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype)
    for i, record in enumerate(records):
        if record["step"] != i or record["checksum"] != _checksum(record):
            return records[:i]
    return records


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "header.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"folder {folder} has no training log: header.json is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"log folder {folder}: header.json is damaged ({error})") from error


def _sampler(described: dict[str, Any] | None, folder: Path) -> Sampler:
    if described is None:
        raise ValueError(
            f"log folder {folder} was written with a sampler of your own: pass it, replay(…, directions=…)"
        )
    return _made(json.dumps(described, sort_keys=True))


@functools.cache
def _made(described: str) -> Sampler:
    """Makes a sampler once: replays with the same object share what JAX has compiled."""
    sampler = json.loads(described)
    made: Sampler = getattr(samplers, sampler["name"])(**sampler["settings"])
    return made


def _snapshot(folder: Path, last: int, params: Params) -> tuple[int, Params]:
    """Returns the latest snapshot up to a step, with its step, or 0 and the first parameters."""
    steps = sorted(int(path.stem.removeprefix("snapshot-")) for path in folder.glob("snapshot-*.npz"))
    usable = [step for step in steps if step <= last]
    if not usable:
        return 0, params
    with np.load(folder / f"snapshot-{usable[-1]:09}.npz") as saved:
        leaves, tree = jax.tree.flatten(params)
        # NumPy reads bfloat16 as bytes.
        read = [jnp.asarray(saved[str(i)].view(leaf.dtype)) for i, leaf in enumerate(leaves)]
        return usable[-1], jax.tree.unflatten(tree, read)
