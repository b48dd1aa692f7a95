"""Checks of an experiment's settings: a message names the option, what it must be, and what it is."""

import math
from typing import Any

from experiments.harness.failure import ExperimentError


def at_least(config: Any, **least: float) -> None:
    """Checks that settings are at least so large; of a tuple every number, and there must be one.

    Args:
      config: a dataclass of settings.
      least: the least value of each setting, by its name.

    Raises:
      ExperimentError: for the first setting that is smaller, or an empty tuple.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if isinstance(value, tuple):
            if not value or min(value) < bound:
                raise ExperimentError(f"{_option(name)} must be one or more numbers of at least {bound}, got {value}")
        elif value < bound:
            raise ExperimentError(f"{_option(name)} must be at least {bound}, got {value}")


def positive(config: Any, *names: str) -> None:
    """Checks that settings are finite and above 0; of a tuple every number, and there must be one.

    Raises:
      ExperimentError: for the first setting that is not, or an empty tuple.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple):
            if not value or not all(0 < number < math.inf for number in value):
                raise ExperimentError(f"{_option(name)} must be finite numbers above 0, got {value}")
        elif not 0 < value < math.inf:
            raise ExperimentError(f"{_option(name)} must be a finite number above 0, got {value}")


def rising(config: Any, *names: str, least: int = 1) -> None:
    """Checks that settings are tuples of one or more rising numbers, the first at least `least`.

    Raises:
      ExperimentError: for the first setting that is not.
    """
    for name in names:
        value = getattr(config, name)
        if not value or min(value) < least or sorted(set(value)) != list(value):
            raise ExperimentError(f"{_option(name)} must be rising numbers of at least {least}, got {value}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
