"""Prints a network as a table."""

import itertools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from nl_jax._core.paths import path_name
from nl_jax.activations import named

if TYPE_CHECKING:
    from nl_jax.networks.layers import Layer
    from nl_jax.networks.wiring import Network

HEAD = "layer", "shape", "activation", "connections", "parameters", "count"


def table(network: "Network") -> str:
    """Lists layers from the input up, one line per connection: kind and source, parameter shapes and their number.

    >>> import nl_jax as nl
    >>> print(nl.mlp([4, 8, 2], activation=nl.activations.tanh()))
    layer    shape  activation  connections      parameters             count
    input    4
    hidden1  8      tanh        dense ← input    bias 8, weight 4 × 8      40
    output   2      identity    dense ← hidden1  bias 2, weight 8 × 2      18
    total                                                                  58
    """
    params = jax.eval_shape(network.init, jax.random.key(0))
    rows = [HEAD]
    total = 0
    for below, layer in itertools.pairwise((None, *network.layers)):
        assert layer is not None
        of_layer = _rows(layer, below.name if below else "", params.get(layer.name, {}))
        shape = " × ".join(map(str, network.shapes[layer.name]))
        activation = named(layer.activation) if layer.connections else ""
        for i, (connection, shapes, count) in enumerate(of_layer or [("", "", 0)]):
            first = (layer.name, shape, activation) if i == 0 else ("", "", "")
            rows.append((*first, connection, shapes, f"{count:,}" if of_layer else ""))
            total += count
    rows.append(("total", "", "", "", "", f"{total:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1].rjust(widths[-1])]).rstrip())
    return "\n".join(lines)


def _rows(layer: "Layer", below: str, params: dict) -> list[tuple[str, str, int]]:
    """Describes each connection and the layer's transform: its kind, its parameters' shapes and their number."""
    sources = [below if one.source is None else one.source for one in layer.connections]
    kinds = [f"{one.kind} ← {source}" for one, source in zip(layer.connections, sources, strict=True)]
    keys = [s if (n := sources[: i + 1].count(s)) == 1 else f"{s}_{n}" for i, s in enumerate(sources)]
    own = {k: v for k, v in params.items() if k not in keys} if len(keys) > 1 else params
    rows = [_row(kind, params[key]) for kind, key in zip(kinds, keys, strict=True)] if len(keys) > 1 else []
    if len(keys) == 1:
        transform = f", {layer.transform.name}" if layer.transform.name else ""
        rows.append(_row(kinds[0] + transform, own))
    elif layer.transform.name:
        rows.append(_row(layer.transform.name, own))
    return rows


def _row(what: str, params: dict) -> tuple[str, str, int]:
    leaves = [(path_name(path), jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    shapes = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in leaves)
    return what, shapes, sum(leaf.size for leaf in jax.tree.leaves(params))
