"""A network as a drawing: units as circles, layers side by side from the input on (after seed 001's figures)."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nl_jax.activations import named

if TYPE_CHECKING:
    from nl_jax.networks.layers import Layer, Network

Unit = tuple[float, float]
COLUMN, ROW = 2.2, 0.55  # distances of layers and of units
RADIUS = 0.16
DENSE = "dense", "lateral_dense"


def draw(network: "Network", *, units: int = 6, title: str | None = None) -> Any:
    """Layers from left to right, each with its name, shape and activation.

    Args:
      network: any.
      units: circles a layer has at most, at least 3; of larger layers and of images the rest are dots.
      title: above all.

    Returns:
      A `matplotlib.figure.Figure`: `figure.savefig("network.png")`.

    Raises:
      ImportError: without matplotlib.
      ValueError: for fewer than 3 units.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("network.diagram() draws with matplotlib: pip install matplotlib") from error
    if units < 3:
        raise ValueError(f"units must be at least 3, got {units}")
    names = list(network.shapes)
    places = {name: _places(column, int(np.prod(network.shapes[name])), units) for column, name in enumerate(names)}
    tall = max(len(of) for of in places.values()) * ROW
    pairs = list(zip(names, network.layers[1:], strict=False))
    skips = sum(1 for below, layer in pairs for source, _ in _sources(layer, below) if source != below)
    low = -tall / 2 - 0.5 - 0.45 * skips
    canvas = Figure(figsize=(1.2 + 1.5 * COLUMN * len(names) / 2, 1.4 + 0.9 * (tall / 2 - low)), layout="constrained")
    axes = canvas.subplots()
    skipped = 0
    for below, layer in pairs:
        for source, kind in _sources(layer, below):
            if source != below:
                skipped += 1
                _arc(axes, places[source], places[layer.name], -tall / 2 - 0.15 - 0.45 * skipped, f"{kind} ← {source}")
            elif kind in DENSE:
                for x0, y0 in filter(None, places[source]):
                    for x1, y1 in filter(None, places[layer.name]):
                        axes.plot((x0 + RADIUS, x1 - RADIUS), (y0, y1), color="#888888", linewidth=0.6, zorder=1)
            else:
                _arrow(axes, places[source], places[layer.name], kind)
    for column, (layer, name) in enumerate(zip(network.layers, names, strict=True)):
        for place in places[name]:
            if place is not None:
                axes.add_patch(_circle(place, "#ffffff" if column else "#dddddd"))
        x = COLUMN * column
        for i in (i for i, place in enumerate(places[name]) if place is None):
            axes.text(x, _height(i, len(places[name])), "⋮", ha="center", va="center", fontsize=14)
        shape = " × ".join(map(str, network.shapes[name]))
        said = f"{name}\n{shape}" + (f"\n{named(layer.activation)}" if layer.connections else "")
        axes.text(x, tall / 2 + 0.15, said, ha="center", va="bottom", fontsize=10)
    axes.set(xlim=(-0.9, COLUMN * (len(names) - 1) + 0.9), ylim=(low, tall / 2 + 1.3), aspect="equal")
    axes.axis("off")
    if title:
        canvas.suptitle(title)
    return canvas


def _sources(layer: "Layer", below: str) -> list[tuple[str, str]]:
    return [(below if one.source is None else one.source, one.kind) for one in layer.connections]


def _height(place: int, count: int) -> float:
    return ROW * ((count - 1) / 2 - place)


def _places(column: int, size: int, units: int) -> list[Unit | None]:
    """Where a layer's circles are, from above; None for those left out."""
    shown: list[bool] = [True] * size if size <= units else [*[True] * (units - 2), False, True]
    return [(COLUMN * column, _height(i, len(shown))) if one else None for i, one in enumerate(shown)]


def _circle(place: Unit, color: str) -> Any:
    from matplotlib.patches import Circle

    return Circle(place, RADIUS, facecolor=color, edgecolor="#222222", linewidth=1.1, zorder=2)


def _arrow(axes: Any, begin: list[Unit | None], end: list[Unit | None], kind: str) -> None:
    """Between neighbours whose connection is not of all units with all."""
    x0, x1 = (next(filter(None, places))[0] for places in (begin, end))
    style = {"arrowstyle": "-|>", "color": "#222222", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x1 - 2 * RADIUS, 0), (x0 + 2 * RADIUS, 0), arrowprops=style)
    axes.text((x0 + x1) / 2, 0.08, kind, ha="center", va="bottom", fontsize=9)


def _arc(axes: Any, begin: list[Unit | None], end: list[Unit | None], depth: float, label: str) -> None:
    """Below the layers, for connections that pass some by."""
    (x0, y0), (x1, y1) = (list(filter(None, places))[-1] for places in (begin, end))
    style = {"arrowstyle": "-|>", "color": "#0072b2", "shrinkA": 0, "shrinkB": 0}
    axes.plot((x0, x0, x1), (y0 - RADIUS, depth, depth), color="#0072b2", linewidth=1.2)
    axes.annotate("", (x1, y1 - RADIUS), (x1, depth), arrowprops=style)
    axes.text((x0 + x1) / 2, depth + 0.05, label, ha="center", va="bottom", fontsize=9, color="#0072b2")
