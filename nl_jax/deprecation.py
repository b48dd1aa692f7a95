"""Warns of what a later release will no longer accept."""

import warnings


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
