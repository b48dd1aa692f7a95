"""Parts of the parameters, chosen by path: what `nl.partition` and `nl.alternating` share."""

import fnmatch
from collections.abc import Mapping, Sequence

import jax

from nl_jax.base import Array, Batch, Objective, Params, Propagate
from nl_jax.checks import path_name, takes_propagate
from nl_jax.propagation import feedforward


def by_path(params: Params) -> dict[str, Array]:
    """All leaves by path, such as "hidden1/weight"; ValueError if two have the same."""
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    paths = [path for path, _ in leaves]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two parameters have the path {twice!r}: rename one, its name holds a '/'")
    return dict(leaves)


def replaced(params: Params, leaves: Mapping[str, Array]) -> Params:
    """The parameters with the given leaves, by path, in the place of their own."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(path_name(path), leaf), params)


def assign(paths: Sequence[str], patterns: Sequence[str], owner: str) -> list[list[str]]:
    """The paths each pattern gets (shell style: *, ?, [ab]); of several that match a path, the first.

    Raises:
      ValueError: if a path matches no pattern or a pattern gets no path; it names the `owner` of the patterns.
    """
    shares: list[list[str]] = [[] for _ in patterns]
    for path in paths:
        place = next((i for i, pattern in enumerate(patterns) if fnmatch.fnmatchcase(path, pattern)), None)
        if place is None:
            raise ValueError(f"no pattern of {owner} matches parameter {path!r}; add one, such as '*'")
        shares[place].append(path)
    for pattern, share in zip(patterns, shares, strict=True):
        if not share:
            raise ValueError(
                f"pattern {pattern!r} of {owner} gets no parameter, none matches or an earlier pattern took them; "
                f"the paths are {', '.join(paths)}"
            )
    return shares


def restricted(objective: Objective, params: Params) -> Objective:
    """The objective as a function of some parameters, by path, the others held at `params`."""
    if takes_propagate(objective):

        def layered(share: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
            return objective(replaced(params, share), batch, propagate=propagate)

        return layered

    return lambda share, batch: objective(replaced(params, share), batch)
