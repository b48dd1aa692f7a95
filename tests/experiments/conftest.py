"""What the tests of all experiments are held to."""

import builtins
import sys

import pytest

from experiments.gallery.outcome import has_nan


@pytest.fixture(autouse=True, scope="package")
def no_nan_in_any_table():
    """An experiment that prints a NaN fails its own test, as it fails the gallery: every one prints by `print`."""

    def checked(*values, sep=" ", file=None, **options):
        text = (sep or " ").join(map(str, values))
        assert file is sys.stderr or not has_nan(text), f"a table has a NaN:\n{text}"
        printed(*values, sep=sep, file=file, **options)

    with pytest.MonkeyPatch.context() as patch:
        printed = builtins.print
        patch.setattr(builtins, "print", checked)
        yield
