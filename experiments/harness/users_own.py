"""Loads a user's own estimator, named on the command line."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from experiments.harness.failure import ExperimentError
from nl_jax.base import GradientEstimator


def is_place(name: str) -> bool:
    """Whether a name has the form module:factory."""
    return ":" in name


def factory_at(option: str, place: str) -> Callable[[Any], GradientEstimator]:
    """`factory(objective) -> estimator`, imported from module:factory.

    Args:
      option: the command-line option, for error messages.
      place: "module:factory"; the module must be importable from the working directory.

    Raises:
      ExperimentError: if it cannot be found.
    """
    module, colon, name = place.partition(":")
    if not colon:
        raise ExperimentError(f"{option} must be module:factory, got {place!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules in the working directory
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ExperimentError(f"{option} {place}: {error}") from error
