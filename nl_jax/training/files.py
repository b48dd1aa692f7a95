"""Atomic file writes, and conversion of arrays to and from their saved form."""

import contextlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from nl_jax._core.paths import by_path, path_name
from nl_jax._core.require import is_key
from nl_jax.base import Array


def write(path: Path, content: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file atomically: if the process ends, the file is complete, or missing or unchanged."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        content(file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def checksum(path: Path) -> int:
    """Returns the CRC-32 of a file's bytes, read in pieces."""
    total = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            total = zlib.crc32(piece, total)
    return total


def reason(error: BaseException) -> str:
    """Returns in one line why something failed; extracts the system's error from TensorStore's long messages."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def described(tree: Any) -> dict[str, str]:
    """Returns dtypes and shapes of a tree's leaves by path, such as {"params/output/weight": "float32[16,10]"}."""
    return {path: f"{x.dtype}[{','.join(map(str, x.shape))}]" for path, x in by_path(tree).items()}


def plain(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by path, in the form orbax accepts: keys as their data, no empty arrays.

    Arrays on one device become NumPy arrays; the process that loads them chooses their device.
    """
    leaves = {path_name(path): _data(x) for path, x in jax.tree_util.tree_leaves_with_path(tree) if x.size}
    return {path: x if isinstance(x.sharding, NamedSharding) else np.asarray(x) for path, x in leaves.items()}


def abstract(tree: Any) -> dict[str, Any]:
    """Returns the shapes, dtypes and shardings of what `plain` would return."""
    leaves = {path_name(path): _data(x) for path, x in jax.tree_util.tree_leaves_with_path(tree) if x.size}

    def shape(x: Array) -> Any:
        if isinstance(x.sharding, NamedSharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)

    return {path: shape(x) for path, x in leaves.items()}


def filled(like: Any, found: dict[str, Any]) -> Any:
    """Rebuilds a tree from the leaves `found`, in the form of `plain`, and places them as the leaves of `like`."""

    def leaf(path: tuple, like: Array) -> Array:
        if not like.size:
            return like
        x = found[path_name(path)]
        if not isinstance(like.sharding, NamedSharding):
            x = jax.device_put(x, like.sharding if like.committed else None)
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if is_key(like) else x

    return jax.tree_util.tree_map_with_path(leaf, like)


def _data(x: Array) -> Array:
    return jax.random.key_data(x) if is_key(x) else x


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences orbax, which logs a traceback for each of its threads that fails; the error is raised in any case."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
