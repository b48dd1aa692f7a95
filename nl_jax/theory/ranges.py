"""Range checks."""

import math


def in_range(**values: tuple[float, int]) -> None:
    """Raises a ValueError naming the first `name=(value, least)` that is not a finite number of at least `least`."""
    for name, (value, least) in values.items():
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least {least}, got {value!r}")
