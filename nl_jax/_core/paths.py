"""Paths of the leaves of a tree, such as "hidden1/weight"."""

import fnmatch
from collections.abc import Mapping, Sequence

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


def assign(paths: Sequence[str], patterns: Sequence[str], owner: str) -> list[list[str]]:
    """Assigns each path to the first pattern that matches it (shell style: *, ?, [ab]); returns each pattern's paths.

    Raises:
      ValueError: if a path matches no pattern or a pattern gets no path; it names the `owner` of the patterns.
    """
    for pattern in patterns:
        if paths and not fnmatch.filter(paths, pattern):
            raise ValueError(
                f"pattern {pattern!r} of {owner} gets no parameter, none matches; a layer's parameters match "
                f"'layer/*'; the paths are {', '.join(paths)}"
            )
    shares: list[list[str]] = [[] for _ in patterns]
    for path in paths:
        place = next((i for i, pattern in enumerate(patterns) if fnmatch.fnmatchcase(path, pattern)), None)
        if place is None:
            raise ValueError(f"no pattern of {owner} matches parameter {path!r}; add one, such as '*'")
        shares[place].append(path)
    for pattern, share in zip(patterns, shares, strict=True):
        if not share:
            raise ValueError(
                f"pattern {pattern!r} of {owner} gets no parameter, earlier patterns took them; "
                f"the paths are {', '.join(paths)}"
            )
    return shares
