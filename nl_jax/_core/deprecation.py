"""Old names and arguments, which stay for one release with a warning."""

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes a module's `__getattr__`, which finds its old names and warns of them.

    Args:
      module: the module's name, such as "nl_jax.propagation".
      names: old name to new name, both in this module.

    Returns:
      `__getattr__(name)`, which raises AttributeError for every other name.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name]
        warnings.warn(
            f"{module}.{name} is now {module}.{new}; the next release removes the old name",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(module), new)

    return find


def renamed_module(old: str, new: str) -> None:
    """Makes `import old` find what is now in `new`, with a warning for each name taken from there."""
    module = types.ModuleType(old, f"The old place of `{new}`, for one release.")

    def find(name: str) -> Any:
        if name.startswith("__"):  # asked by Python itself
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warnings.warn(f"{old} is now {new}; the next release removes the old path", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new), name)

    module.__getattr__ = find  # type: ignore[method-assign]
    sys.modules[old] = module


def deprecated_argument(function: str, argument: str, remedy: str) -> None:
    """Warns the caller of `function` that `argument` will be removed after one release.

    Call it in the body of the function itself: the warning points to the line that called that function.

    Args:
      function: name of the function, as the user calls it.
      argument: name of the argument.
      remedy: what to write instead.
    """
    warnings.warn(
        f"{function}: the argument {argument!r} is deprecated and will be removed after one release: {remedy}",
        DeprecationWarning,
        stacklevel=3,
    )
