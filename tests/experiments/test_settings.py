"""What settings must be, and how it is said that they are not."""

import math
from dataclasses import dataclass

import pytest

from experiments.harness.failure import ExperimentError
from experiments.harness.settings import at_least, positive, rising


@dataclass(frozen=True)
class Config:
    batch_size: int = 2
    hidden: tuple[int, ...] = (3, 2)
    rate: float = 0.1
    rates: tuple[float, ...] = (0.1, 0.01)
    depths: tuple[int, ...] = (2, 4)


def test_good_settings_pass():
    at_least(Config(), batch_size=2, hidden=2)
    positive(Config(), "rate", "rates", "batch_size")
    rising(Config(), "depths", least=2)


@pytest.mark.parametrize(
    ("check", "changed", "message"),
    [
        (lambda c: at_least(c, batch_size=2), {"batch_size": 1}, "--batch-size must be at least 2, got 1"),
        (lambda c: at_least(c, hidden=1), {"hidden": (1, 0)}, "--hidden must be one or more numbers of at least 1"),
        (lambda c: at_least(c, hidden=1), {"hidden": ()}, "--hidden must be one or more numbers of at least 1, got ()"),
        (lambda c: positive(c, "rate"), {"rate": 0.0}, "--rate must be a finite number above 0, got 0.0"),
        (lambda c: positive(c, "rate"), {"rate": math.inf}, "--rate must be a finite number above 0, got inf"),
        (lambda c: positive(c, "rate"), {"rate": math.nan}, "--rate must be a finite number above 0, got nan"),
        (lambda c: positive(c, "rates"), {"rates": (1.0, -1.0)}, "--rates must be finite numbers above 0, got (1.0"),
        (lambda c: positive(c, "rates"), {"rates": ()}, "--rates must be finite numbers above 0, got ()"),
        (lambda c: rising(c, "depths"), {"depths": (4, 4)}, "--depths must be rising numbers of at least 1, got (4"),
        (lambda c: rising(c, "depths", least=3), {"depths": (2, 4)}, "--depths must be rising numbers of at least 3"),
        (lambda c: rising(c, "depths"), {"depths": ()}, "--depths must be rising numbers of at least 1, got ()"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(check, changed, message):
    with pytest.raises(ExperimentError) as raised:
        check(Config(**changed))
    assert str(raised.value).startswith(message)
