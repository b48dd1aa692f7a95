"""What the reference lists: every public name, page by page, read off the package itself."""

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import nl_jax as nl
from nl_jax import base

# The order in which a reader meets the rooms of the package; those not named here follow.
ROOMS = ("base", "propagation", "networks", "activations", "objectives", "losses", "estimators", "rules", "training")
# Modules of the private room that users reach by name.
BESIDE = {"_core.products": "networks", "_core.require": "base", "_core.failures": "base"}
TITLES = {"base": "Contracts", "require": "Checks of arguments"}


class Entry(NamedTuple):
    """One public name.

    Attributes:
      name: as users write it, "nl.rules.oja".
      path: where it is defined, "nl_jax.rules.oja.oja".
    """

    name: str
    path: str


class Page(NamedTuple):
    """One page of the reference: a module that users reach as `nl.<key>`, or what a room adds to `nl` itself."""

    room: str
    key: str
    module: ModuleType
    entries: list[Entry]

    @property
    def title(self) -> str:
        """The key in words."""
        return TITLES.get(self.key) or self.key.rpartition(".")[2].replace("_", " ").capitalize()

    def markdown(self) -> str:
        """The page, each entry a directive for mkdocstrings."""
        introduction = inspect.getdoc(self.module) or ""
        return "\n\n".join([f"# {self.title}", introduction, *map(_directive, self.entries)])


@functools.cache
def pages() -> list[Page]:
    """All pages, rooms in the order of `ROOMS`, the page called as its room first."""
    modules = {"base": base, **dict(_modules("", nl))}
    top = {_path(nl, name): f"nl.{name}" for name in nl.__all__ if name not in modules}
    entries = {
        key: [*_members("nl_jax.base" if module is base else f"nl.{key}", module)] for key, module in modules.items()
    }
    listed = {entry.path for members in entries.values() for entry in members}
    for path, name in top.items():
        if path not in listed:
            room = _room(path)
            modules.setdefault(room, importlib.import_module(f"nl_jax.{room}"))
            entries.setdefault(room, []).append(Entry(name, path))
    found = [Page(_room(module.__name__), key, module, _named(entries[key], top)) for key, module in modules.items()]
    place = {room: i for i, room in enumerate(ROOMS)}
    return sorted(
        found, key=lambda page: (place.get(page.room, len(ROOMS)), page.room, page.key != page.room, page.key)
    )


@functools.cache
def names() -> dict[str, str]:
    """{path: name} of every public name."""
    return {entry.path: entry.name for page in pages() for entry in page.entries}


def _modules(prefix: str, module: ModuleType) -> Iterator[tuple[str, ModuleType]]:
    """Every module that a user reaches by name, and those in it."""
    for name in getattr(module, "__all__", ()):
        if isinstance(value := getattr(module, name), ModuleType):
            yield f"{prefix}{name}", value
            yield from _modules(f"{prefix}{name}.", value)


def _members(prefix: str, module: ModuleType) -> Iterator[Entry]:
    for name in getattr(module, "__all__", None) or _defined(module):
        if not isinstance(getattr(module, name), ModuleType):
            yield Entry(f"{prefix}.{name}", _path(module, name))


@functools.cache
def _defined(module: ModuleType) -> list[str]:
    """The public names that a module's own statements define, in their order."""
    found: list[str] = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in found if not name.startswith("_")]


@functools.cache
def _path(module: ModuleType, name: str) -> str:
    """Where a name is defined; an alias of a type does not know, so the imports are followed."""
    if name in _defined(module):
        return f"{module.__name__}.{name}"
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _path(importlib.import_module(node.module or ""), alias.name)
    raise LookupError(f"{module.__name__} neither defines nor imports {name}")


def _room(path: str) -> str:
    return BESIDE.get(".".join(path.split(".")[1:3])) or path.split(".")[1]


def _named(entries: list[Entry], top: dict[str, str]) -> list[Entry]:
    """In alphabetical order, each by the shortest name it goes by."""
    return sorted(Entry(top.get(entry.path, entry.name), entry.path) for entry in entries)


def _directive(entry: Entry) -> str:
    last = entry.name.rpartition(".")[2]
    return f"::: {entry.path}\n    options:\n      heading: {entry.name}\n      toc_label: {last}"
