"""Measures running times by interleaved repeats, with medians and quartiles."""

import importlib.util
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int, *, progress: bool = True) -> dict[str, Any]:
    """Times each function in each round, in seconds [rounds]; functions alternate, so disturbances affect all alike.

    The order changes from round to round, so that no function always inherits another's caches. Every function first
    runs once, to compile and to warm up.
    """
    for function in _track(functions.values(), "compile", "function", progress):
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names, shuffle = list(functions), np.random.default_rng(0).permutation
    for _ in _track(range(rounds), "measure", "round", progress):
        for name in shuffle(names):
            began = time.perf_counter()
            jax.block_until_ready(functions[name]())
            seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(values) for name, values in seconds.items()}


def spread(values: np.ndarray) -> Spread:
    """Computes the median and quartiles of repeats."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def ratio(seconds: np.ndarray, unit: np.ndarray) -> Spread:
    """Computes the median and quartiles of each round's ratio to the same round's unit."""
    return spread(seconds / unit)


def _track(items: Collection[Any], description: str, unit: str, progress: bool) -> Iterable[Any]:
    if not progress or importlib.util.find_spec("tqdm") is None:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=description, unit=unit)
