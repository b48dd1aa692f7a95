"""The trials of a sweep: values of each setting by name, [trials]."""

from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def trials_of(settings: Any) -> dict[str, np.ndarray]:
    """Checks settings and returns their values by name, [trials]."""
    if isinstance(settings, Mapping):
        grid = np.meshgrid(*(_numbers(name, values) for name, values in settings.items()), indexing="ij")
        trials = {name: values.ravel() for name, values in zip(settings, grid, strict=True)}
    else:
        rows = list(settings) if isinstance(settings, Iterable) else []
        alike = all(isinstance(row, Mapping) and set(row) == set(rows[0]) for row in rows)
        trials = {name: _numbers(name, [row[name] for row in rows]) for name in rows[0]} if rows and alike else {}
    if not trials or not count(trials):
        raise ValueError(
            "settings must be values by name, such as {'rate': [0.01, 0.1]}, or a sequence of mappings that all have "
            f"the same names; got {settings!r}"
        )
    return trials


def _numbers(name: str, values: Any) -> np.ndarray:
    """Returns the values of a setting as float64; raises a ValueError unless float32 can hold them."""
    try:
        found = np.atleast_1d(np.asarray(values))
        if found.dtype == object and all(isinstance(value, Real) for value in found.flat):
            found = found.astype(float)  # such as fractions
    except (TypeError, ValueError):  # lists of unequal lengths
        found = np.array(None)
    if not any(jnp.issubdtype(found.dtype, kind) for kind in (np.bool_, np.integer, jnp.floating)):
        raise ValueError(
            f"settings must be numbers, those of {name!r} are {values!r}: for names or functions, make a sweep of each"
        )
    if found.ndim != 1:
        raise ValueError(f"settings must be one number each, those of {name!r} have shape {found.shape[1:]}")
    found, limits = found.astype(float), np.finfo(np.float32)
    size = np.abs(found)
    if not ((size == 0) | ((limits.tiny <= size) & (size <= limits.max))).all():
        raise ValueError(
            f"settings must be 0 or numbers of float32, from {limits.tiny:.2g} to {limits.max:.2g} in size; those of "
            f"{name!r} are {values!r}"
        )
    return found


def count(trials: dict[str, np.ndarray]) -> int:
    """Returns the number of trials."""
    return len(next(iter(trials.values())))


def groups(trials: dict[str, np.ndarray], at_once: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields names and values of groups of equal size, which share one compiled program; the last may be padded."""
    number = count(trials)
    together = -(-number // -(-number // min(at_once, number)))
    for first in range(0, number, together):
        chosen = np.minimum(np.arange(first, first + together), number - 1)
        name = f"settings-{first}-{chosen[-1]}"
        yield name, {name: values[chosen].astype(np.float32) for name, values in trials.items()}


def shapes(trials: dict[str, np.ndarray], number: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the values of `number` trials."""
    return {name: jax.ShapeDtypeStruct((number,), np.float32) for name in trials}
