"""Repeats a training run from its log, without a forward pass."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.deprecation import deprecated_argument
from nl_jax._core.require import nonnegative_integer
from nl_jax.base import Params
from nl_jax.estimators.noise import directions as samplers
from nl_jax.estimators.noise.directions import Sampler
from nl_jax.estimators.noise.engine.sampled_gradient import Directions, SampledGradient
from nl_jax.training.in_place import Update, advanced
from nl_jax.training.replay_log import TrainingLog
from nl_jax.training.replay_records import (
    described_leaves,
    first_difference,
    latest_snapshot,
    past_of,
    read_header,
    read_records,
    record_of,
)

_AT_ONCE = 256  # steps repeated in one compiled call


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
    header = read_header(folder)
    records = read_records(folder, record_of(header))
    last = len(records) if steps is None else nonnegative_integer("steps", steps)
    if last > len(records):
        raise ValueError(f"steps must be at least 0 and at most the log's {len(records)}, got {steps}")
    if header["parameters"] != described_leaves(params):
        raise ValueError(
            f"log folder {folder} belongs to other parameters: {first_difference(header['parameters'], params)}"
        )
    first, params = latest_snapshot(folder, last, params)
    drawn = Directions.of(directions or _sampler(header["law"], folder), params, header["weights"])
    momentum = np.array(header.get("momentum", [1.0]), np.float32)
    past = past_of(records[:first], len(momentum) - 1) if len(momentum) > 1 else ()
    for at in range(first, last, _AT_ONCE):
        some = records[at : min(at + _AT_ONCE, last)]
        updates = (jnp.asarray(some[name]) for name in ("key", "scale", "rates"))
        params, past = _repeated(drawn, header["generator"], params, past, (*updates, jnp.asarray(momentum)))
    return params


@functools.partial(jax.jit, static_argnums=(0, 1))
def _repeated(directions: Directions, generator: str, params: Params, past: Any, updates: Any) -> tuple[Params, Any]:
    *of_steps, momentum = updates

    def one(now: tuple[Params, Any], update: Any) -> tuple[tuple[Params, Any], None]:
        key, scale, rates = update
        like = SampledGradient(jax.random.wrap_key_data(key, impl=generator), rates, directions)
        return advanced(like, *now, Update(key, scale, rates, momentum)), None

    return jax.lax.scan(one, (params, past), tuple(of_steps))[0]


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
