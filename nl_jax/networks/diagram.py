"""Draws a network: units as circles, layers from left to right (after seed 001's figures)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nl_jax.activations import named

if TYPE_CHECKING:
    from nl_jax.networks.layers import Layer
    from nl_jax.networks.wiring import Network

Unit = tuple[float, float]
COLUMN, ROW = 2.2, 0.55  # distances between layers and between units
RADIUS = 0.16
DENSE = "dense", "lateral_dense", "decorrelated dense"


def draw(
    network: "Network",
    *,
    units: int = 6,
    title: str | None = None,
    values: Mapping[str, Any] | None = None,
    axes: Any = None,
) -> Any:
    """Draws layers from left to right, each with its name, shape and activation.

    Args:
      network: any network.
      units: the maximum number of circles per layer, at least 3. Dots stand for the other units of larger layers and of
        images.
      title: the figure's title.
      values: a number per unit for each layer, such as one example's axons (activity) or credit. Each is written below
        its unit and colours it: red above 0, blue below 0, deeper for larger magnitudes within the layer.
      axes: the matplotlib axes to draw in; by default those of a new figure.

    Returns:
      A `matplotlib.figure.Figure`, which can be saved by `figure.savefig("network.png")`.

    Raises:
      ImportError: without matplotlib.
      ValueError: for fewer than 3 units, or values of an unknown layer or another number of units.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("network.diagram() draws with matplotlib: pip install matplotlib") from error
    if units < 3:
        raise ValueError(f"units must be at least 3, got {units}")
    names = list(network.shapes)
    written = {name: _checked(network, name, of_layer) for name, of_layer in (values or {}).items()}
    places = {name: _places(column, int(np.prod(network.shapes[name])), units) for column, name in enumerate(names)}
    tall = max(len(of) for of in places.values()) * ROW
    pairs = list(zip(names, network.layers[1:], strict=False))
    skips = sum(1 for below, layer in pairs for source, _ in _sources(layer, below) if source != below)
    low = -tall / 2 - 0.5 - 0.45 * skips
    if axes is None:
        size = 1.2 + 1.5 * COLUMN * len(names) / 2, 1.4 + 0.9 * (tall / 2 - low)
        axes = Figure(figsize=size, layout="constrained").subplots()
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
        shown = [place for place in places[name] if place is not None]
        if name in written:
            _valued(axes, shown, written[name])
        for place in [] if name in written else shown:
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
        axes.set_title(title)
    return axes.figure


def _sources(layer: "Layer", below: str) -> list[tuple[str, str]]:
    return [(below if one.source is None else one.source, one.kind) for one in layer.connections]


def _height(place: int, count: int) -> float:
    return ROW * ((count - 1) / 2 - place)


def _places(column: int, size: int, units: int) -> list[Unit | None]:
    """Returns the positions of a layer's circles from top to bottom; None marks omitted units."""
    shown: list[bool] = [True] * size if size <= units else [*[True] * (units - 2), False, True]
    return [(COLUMN * column, _height(i, len(shown))) if one else None for i, one in enumerate(shown)]


def _checked(network: "Network", name: str, values: Any) -> np.ndarray:
    """Checks a layer's values and returns them as a vector."""
    if name not in network.shapes:
        raise ValueError(f"values: no layer is named {name!r}; the layers are {', '.join(network.shapes)}")
    if np.shape(values) != network.shapes[name]:
        raise ValueError(
            f"values[{name!r}] must be one example's, of shape {network.shapes[name]}, got {np.shape(values)}"
        )
    return np.ravel(np.asarray(values, float))


def _valued(axes: Any, places: list[Unit], values: np.ndarray) -> None:
    """Draws units coloured by their values, with the values below; the last circle is the layer's last unit."""
    from matplotlib import colormaps

    largest = np.abs(values).max() or 1.0
    of_units = [*values[: len(places) - 1], values[-1]]
    for (x, y), value in zip(places, of_units, strict=True):
        axes.add_patch(_circle((x, y), colormaps["RdBu_r"](0.5 + 0.4 * value / largest)))
        text = f"{value:#.2g}".removesuffix(".").replace("-", "\N{MINUS SIGN}")
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4}
        axes.text(x, y - RADIUS - 0.015, text, ha="center", va="top", fontsize=8, bbox=box, zorder=3)


def _circle(place: Unit, color: Any) -> Any:
    from matplotlib.patches import Circle

    return Circle(place, RADIUS, facecolor=color, edgecolor="#222222", linewidth=1.1, zorder=2)


def _arrow(axes: Any, begin: list[Unit | None], end: list[Unit | None], kind: str) -> None:
    """Draws an arrow between neighbouring layers whose connection is not all-to-all."""
    x0, x1 = (next(filter(None, places))[0] for places in (begin, end))
    style = {"arrowstyle": "-|>", "color": "#222222", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x1 - 2 * RADIUS, 0), (x0 + 2 * RADIUS, 0), arrowprops=style)
    axes.text((x0 + x1) / 2, 0.08, kind, ha="center", va="bottom", fontsize=9)


def _arc(axes: Any, begin: list[Unit | None], end: list[Unit | None], depth: float, label: str) -> None:
    """Draws a skip connection below the layers."""
    (x0, y0), (x1, y1) = (list(filter(None, places))[-1] for places in (begin, end))
    style = {"arrowstyle": "-|>", "color": "#0072b2", "shrinkA": 0, "shrinkB": 0}
    axes.plot((x0, x0, x1), (y0 - RADIUS, depth, depth), color="#0072b2", linewidth=1.2)
    axes.annotate("", (x1, y1 - RADIUS), (x1, depth), arrowprops=style)
    axes.text((x0 + x1) / 2, depth + 0.05, label, ha="center", va="bottom", fontsize=9, color="#0072b2")
