"""The files of a training log: its header, a record for every step, and snapshots of the parameters."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.paths import path_name
from nl_jax._core.require import sample_function
from nl_jax.base import Batch, GradientEstimator, Params
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.training.files import write
from nl_jax.training.in_place import Past, nothing_yet

_KEPT = "key", "rates"


def header_of(estimator: GradientEstimator, params: Params, batch: Batch) -> dict[str, Any]:
    """Returns the header of a run's log: what a replay must know of its estimator and parameters.

    Raises:
      ValueError: if the estimator has a state, or does not say what it sampled.
    """
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
        "parameters": described_leaves(params),
        "weights": [leaf.weight for leaf in sampled.directions.leaves],
        "rates": list(sampled.rates.shape),
        "dtype": str(sampled.rates.dtype),
        "generator": str(jax.random.key_impl(key)),
        "key": jax.random.key_data(key).size,
    }


def described_leaves(params: Params) -> list[list[Any]]:
    """Returns path, shape and dtype of every leaf of the parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [[path_name(path), list(leaf.shape), str(jnp.dtype(leaf.dtype))] for path, leaf in leaves]


def first_difference(logged: list[list[Any]], params: Params) -> str:
    """Says in what the parameters of a log first differ from others."""
    pairs = zip([*logged, None], [*described_leaves(params), None], strict=False)
    return next(f"it has {of} where these have {given}" for of, given in pairs if of != given)


def record_of(header: dict[str, Any]) -> np.dtype:
    """Returns the layout of a record in a file with this header."""
    fields = [
        ("step", "<i8"), ("key", "<u4", (header["key"],)), ("scale", "<f4"),
        ("rates", np.dtype(header["dtype"]).newbyteorder("<"), tuple(header["rates"])), ("checksum", "<u4"),
    ]  # fmt: skip
    return np.dtype(fields)


def checksum(record: np.void) -> int:
    """Returns the checksum of all of a record but its last field, which holds it."""
    return zlib.crc32(record.tobytes()[:-4])


def read_records(folder: Path, dtype: np.dtype) -> np.ndarray:
    """Returns the complete records, up to the first that is damaged or out of order."""
    path = folder / "updates.bin"
    content = path.read_bytes() if path.exists() else b""
    records = np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype)
    for i, record in enumerate(records):
        if record["step"] != i or record["checksum"] != checksum(record):
            return records[:i]
    return records


def read_header(folder: Path) -> dict[str, Any]:
    """Reads the header of a log.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    try:
        return json.loads((folder / "header.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"folder {folder} has no training log: header.json is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"log folder {folder}: header.json is damaged ({error})") from error


def past_of(records: np.ndarray, window: int) -> Past:
    """Returns the last gradients of some records, newest first; gradients before the first step are 0."""
    key, rates = (np.zeros(records.dtype[name].shape, records.dtype[name].base) for name in _KEPT)
    past = nothing_yet(key, rates, window)
    newest = records[-window:][::-1]
    return Past(*(none.at[: len(newest)].set(newest[name]) for none, name in zip(past, _KEPT, strict=True)))


def save_snapshot(folder: Path, step: int, params: Params) -> None:
    """Saves all parameters after a step."""
    leaves: dict[str, Any] = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}
    write(folder / f"snapshot-{step:09}.npz", lambda file: np.savez(file, **leaves))


def latest_snapshot(folder: Path, last: int, params: Params) -> tuple[int, Params]:
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
