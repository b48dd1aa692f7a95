"""Ratios of running times, fair to all: interleaved repeats, medians, quartiles."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm


class Ratio(NamedTuple):
    """Of one function's time to a unit's, round by round: median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each function in each round, [rounds]: all take turns, so that all share every disturbance.

    The order changes from round to round, so that none always inherits another's caches. Every function is
    run once before, to compile and to warm up.
    """
    for function in tqdm(functions.values(), desc="compile", unit="function"):
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names, shuffle = list(functions), np.random.default_rng(0).permutation
    for _ in tqdm(range(rounds), desc="measure", unit="round"):
        for name in shuffle(names):
            began = time.perf_counter()
            jax.block_until_ready(functions[name]())
            seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(values) for name, values in seconds.items()}


def ratio(seconds: np.ndarray, unit: np.ndarray) -> Ratio:
    """Each round's ratio to the same round's unit, as a median with quartiles."""
    low, median, high = np.percentile(seconds / unit, [25, 50, 75])
    return Ratio(float(median), float(low), float(high))
