"""Deprecated arguments are warned of where they are handed in."""

from pathlib import Path

import pytest

from nl_jax.deprecation import deprecated_argument


def function(example=None):
    if example is not None:
        deprecated_argument("function", "example", "leave it out")
    return 1


def test_the_warning_names_the_argument_and_the_callers_line():
    with pytest.warns(DeprecationWarning, match="function") as seen:
        function(2)
    (warning,) = seen
    assert str(warning.message) == (
        "function: the argument 'example' is deprecated and will be removed after one release: leave it out"
    )
    assert warning.filename == __file__
    assert Path(__file__).read_text().splitlines()[warning.lineno - 1].strip() == "function(2)"


def test_without_it_nothing_is_said():
    assert function() == 1  # any warning is an error here
