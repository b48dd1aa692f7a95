"""Paths of the leaves of a tree, such as "hidden1/weight"."""

import fnmatch
from collections.abc import Collection, Mapping, Sequence

import jax

from nl_jax.base import Array, Params


def path_name(path: tuple) -> str:
    """Returns a leaf's path in a tree as users write it, such as "hidden1/weight"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(params: Params) -> dict[str, Array]:
    """Returns all leaves by path, such as "hidden1/weight"; raises ValueError if two have the same path."""
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    paths = [path for path, _ in leaves]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two parameters have the path {twice!r}: rename the one whose name contains a '/'")
    return dict(leaves)


def replaced(params: Params, leaves: Mapping[str, Array]) -> Params:
    """Returns the parameters with some leaves replaced by the given ones, by path."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(path_name(path), leaf), params)


def matching(names: Collection[str], pattern: str) -> list[str]:
    """Returns the names that a pattern stands for: the name that it is, or those it matches (shell style: *, ?, [ab]).

    Brackets stand for themselves where that matches a name: "a[0]/*" matches "a[0]/weight".
    """
    if pattern in names:
        return [pattern]
    readings = pattern.replace("[", "[[]"), pattern
    matched = ([name for name in names if fnmatch.fnmatchcase(name, reading)] for reading in readings)
    return next((found for found in matched if found), [])


def first_matches(names: Collection[str], patterns: Collection[str]) -> dict[str, int]:
    """Returns, for each name that a pattern stands for, the place of the first such pattern."""
    places: dict[str, int] = {}
    for place, pattern in enumerate(patterns):
        for name in matching(names, pattern):
            places.setdefault(name, place)
    return places


def assign(paths: Sequence[str], patterns: Sequence[str], owner: str) -> list[list[str]]:
    """Assigns each path to the first pattern that stands for it (see `matching`); returns each pattern's paths.

    Raises:
      ValueError: if a path matches no pattern or a pattern gets no path; it names the `owner` of the patterns.
    """
    for pattern in patterns:
        if paths and not matching(paths, pattern):
            raise ValueError(
                f"pattern {pattern!r} of {owner} gets no parameter, none matches; a layer's parameters match "
                f"'layer/*'; the paths are {', '.join(paths)}"
            )
    places = first_matches(paths, patterns)
    for path in paths:
        if path not in places:
            raise ValueError(f"no pattern of {owner} matches parameter {path!r}; add one, such as '*'")
    shares = [[path for path in paths if places[path] == place] for place in range(len(patterns))]
    for pattern, share in zip(patterns, shares, strict=True):
        if not share:
            raise ValueError(
                f"pattern {pattern!r} of {owner} gets no parameter, earlier patterns took them; "
                f"the paths are {', '.join(paths)}"
            )
    return shares
