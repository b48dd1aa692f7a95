"""Old names and arguments stay for one release, with a warning that says the new one."""

import importlib
from pathlib import Path

import pytest

import nl_jax as nl
from nl_jax._core.deprecation import deprecated_argument

OLD = {
    "nl_jax": {"augmented": "augment_batches", "starts": "initial_activity"},
    "nl_jax.propagation": {"hold": "clamp", "Held": "Clamped", "Partly": "PartlyClamped"},
    "nl_jax.estimators.noise.directions": {"Law": "Sampler"},
    "nl_jax._core.products": {"StandIn": "LazyWeight"},
    "nl_jax.evaluation.conformance": {"Row": "CheckResult"},
    "nl_jax.evaluation.diagnostics": {"Row": "EstimatorEfficiency"},
    "nl_jax.networks.connections": {"Connection": "ConnectionSpec"},
}


@pytest.mark.parametrize(("module", "old", "new"), [(m, a, b) for m, names in OLD.items() for a, b in names.items()])
def test_an_old_name_warns_and_is_the_new_one(module, old, new):
    here = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{module}.{old} is now {module}.{new}"):
        assert getattr(here, old) is getattr(here, new)
    assert old not in here.__all__
    assert new in here.__all__


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match="module 'nl_jax' has no attribute 'backdrop'"):
        nl.backdrop  # noqa: B018


@pytest.mark.parametrize(("old", "new"), [("checks", nl.require), ("conformance", nl.conformance)])
def test_an_old_module_warns_and_has_the_same_names(old, new):
    found = importlib.import_module(f"nl_jax.{old}")
    for name in getattr(new, "__all__", ["typed_key", "positive_number"]):
        with pytest.warns(DeprecationWarning, match=f"nl_jax.{old} is now nl_jax"):
            assert getattr(found, name) is getattr(new, name)
    assert nl.conformance.__name__ == "nl_jax.evaluation.conformance"


def function(example=None):
    if example is not None:
        deprecated_argument("function", "example", "leave it out")
    return 1


def test_the_warning_of_an_argument_names_it_and_the_callers_line():
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
