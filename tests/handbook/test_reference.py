"""The reference lists all that is public, each thing once, where it is defined."""

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType

from handbook import prose, reference

import nl_jax as nl


def _unlisted(where: str, module: ModuleType) -> Iterator[str]:
    """What is public in a module, or in one that it makes public, and not listed."""
    names = set(reference.names().values())
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            if value not in [page.module for page in reference.pages()]:
                yield f"{where}.{name}"
            yield from _unlisted(f"{where}.{name}", value)
        elif not {f"{where}.{name}", f"nl.{name}"} & names:
            yield f"{where}.{name}"
    for name, value in inspect.getmembers(module, lambda v: inspect.isfunction(v) or inspect.isclass(v)):
        path = f"{value.__module__}.{value.__qualname__}"
        if path.startswith(f"{module.__name__}.") and name[0] != "_" and path not in reference.names():
            yield f"{where}.{name}"


def test_all_that_is_public_is_listed():
    assert list(_unlisted("nl", nl)) == []


def test_everything_listed_is_there_and_listed_once():
    entries = [entry for page in reference.pages() for entry in page.entries]
    assert len({entry.path for entry in entries}) == len({entry.name for entry in entries}) == len(entries)
    for name, path in entries:
        module, _, member = path.rpartition(".")
        value = getattr(importlib.import_module(module), member)
        found = nl
        for part in name.split(".")[1:]:
            found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
        assert found is value, name


def test_a_room_comes_before_what_belongs_to_it():
    keys = [page.key for page in reference.pages()]
    assert keys[:4] == ["base", "require", "propagation", "networks"]
    assert len(set(keys)) == len(keys)
    assert keys.index("estimators") < keys.index("directions") < keys.index("rules")


def test_a_page_hands_its_names_to_mkdocstrings():
    page = next(page for page in reference.pages() if page.key == "units")
    assert page.markdown().startswith("# Units\n\nStochastic")
    assert (
        "::: nl_jax.estimators.noise.stochastic_units.gaussian\n    options:\n      heading: nl.units.gaussian"
        in page.markdown()
    )


def test_docstrings_read_as_they_were_meant():
    text = "w* is *not* bold, `a * b`::\n\n    a * b\n\nArgs:\n  x, y: data,\n    of two.\n  *rest: all."
    assert prose.markdown(f"{text}\n\n>>> 2 * 3\n6\n\nEnd*") == (
        "w\\* is *not* bold, `a * b`:\n\n    a * b\n\nArgs:\n  x: data,\n    of two.\n  y: see `x`.\n  *rest: all.\n\n"
        "```pycon\n>>> 2 * 3\n6\n```\n\nEnd\\*"
    )
