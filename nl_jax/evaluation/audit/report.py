"""The result of an audit: verdicts for each leaf, a table and a figure."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from nl_jax.evaluation.audit.timing import Timing

Reach = Literal["no", "maybe", "yes"]

LOCAL = ("own weight", "own layer", "own pre", "own post", "noise")
"""The kinds of sources that are local to a parameter: itself, its layer's other parameters, the layer's inputs, the
layer's own values, and the estimator's key."""

COLUMNS = (*LOCAL, "loss", "other axons", "input", "other weights", "target")
"""All kinds of sources: the local ones, the third factor, and the rest."""

_VIOLATIONS = {
    "reads other axons": ("other axons", "input"),
    "weight transport": ("other weights",),
    "sees the target": ("target",),
}

_NAMED = ("other axons", "other weights")


class Source(NamedTuple):
    """One source that can reach a leaf's update.

    Attributes:
      name: a leaf's path, a layer's name, or the column's name.
      through: the opaque primitive it may pass through; None if the path is known.
    """

    name: str
    through: str | None = None


class AuditedLeaf(NamedTuple):
    """One parameter leaf.

    Attributes:
      layers: the layers that use it; empty for a parameter used between or after layers.
      sources: the sources that can reach its update, by column.
    """

    layers: tuple[str, ...]
    sources: Mapping[str, frozenset[Source]]

    def reach(self, *columns: str) -> Reach:
        """Whether a source in these columns can reach the update; "maybe" if only through an opaque primitive."""
        found = [source for column in columns for source in self.sources[column]]
        if any(source.through is None for source in found):
            return "yes"
        return "maybe" if found else "no"

    @property
    def verdict(self) -> str:
        """The most that the update can see, such as "three-factor", and the layers that share the weight, if any."""
        shared = f", shared by {' and '.join(self.layers)}" if len(self.layers) > 1 else ""
        return _verdict([self]) + shared


class Audit(NamedTuple):
    """What every update can see; available as a table (`str` or `print`), a figure (`plot`) or data (`as_dict`).

    Attributes:
      rows: a row for each parameter leaf.
      timing: when updates get their information, and whether memory grows with the number of steps; None unless the
        audit was given a loop.
    """

    rows: dict[str, AuditedLeaf]
    timing: Timing | None = None

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each leaf."""
        return {leaf: row.verdict for leaf, row in self.rows.items()}

    @property
    def verdict(self) -> str:
        """The verdict on the estimator: everything that any of its updates can see."""
        shared = any(len(row.layers) > 1 for row in self.rows.values())
        return _verdict(list(self.rows.values())) + (", shared weights" if shared else "")

    def __str__(self) -> str:
        cells = [["leaf", *COLUMNS, "verdict"]]
        for leaf, row in self.rows.items():
            cells.append([leaf, *(_cell(row, column) for column in COLUMNS), row.verdict])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]
        when = [] if self.timing is None else [f"when: {self.timing.when}; memory: {self.timing.memory} with the steps"]
        return "\n".join([*(line.rstrip() for line in lines), *self._notes(), f"verdict: {self.verdict}", *when])

    def _notes(self) -> list[str]:
        outside = [f"{leaf} belongs to no layer" for leaf, row in self.rows.items() if not row.layers]
        found = {source.through for row in self.rows.values() for sources in row.sources.values() for source in sources}
        opaque = sorted(name for name in found if name is not None)
        return outside + [
            f"maybe: the audit cannot look inside {name}; its outputs may depend on all its inputs" for name in opaque
        ]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON: each leaf's layers, verdict and sources, with any opaque primitive."""
        leaves = {
            leaf: {
                "layers": list(row.layers),
                "verdict": row.verdict,
                "sources": {
                    column: [source._asdict() for source in _sorted(row.sources[column])] for column in COLUMNS
                },
            }
            for leaf, row in self.rows.items()
        }
        timing = {} if self.timing is None else {"timing": self.timing._asdict()}
        return {"verdict": self.verdict, "leaves": leaves} | timing

    def plot(self) -> Any:
        """Plots leaf × source with Matplotlib: dark is yes, "?" maybe; lines separate local, third factor and the rest.

        Raises:
          ImportError: if Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs Matplotlib: pip install matplotlib") from error
        reach = [[row.reach(column) for column in COLUMNS] for row in self.rows.values()]
        shade = np.array([[("no", "maybe", "yes").index(cell) for cell in line] for line in reach])
        canvas = Figure(figsize=(9.5, 1.6 + 0.34 * len(self.rows)), layout="constrained")
        axes = canvas.subplots()
        axes.pcolormesh(shade, cmap="Blues", vmin=0, vmax=2.4, edgecolors="white", linewidth=1.5)
        for y, x in zip(*np.nonzero(shade == 1), strict=True):
            axes.text(x + 0.5, y + 0.5, "?", ha="center", va="center")
        for border in (len(LOCAL), len(LOCAL) + 1):
            axes.axvline(border, color="black")
        axes.set_xticks(np.arange(len(COLUMNS)) + 0.5, COLUMNS, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(len(self.rows)) + 0.5, self.rows)
        axes.invert_yaxis()
        axes.set_title(self.verdict)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        verdicts = axes.secondary_yaxis("right")
        verdicts.set_yticks(np.arange(len(self.rows)) + 0.5, self.verdicts.values())
        verdicts.tick_params(length=0)
        verdicts.spines[:].set_visible(False)
        return canvas


def _verdict(rows: list[AuditedLeaf]) -> str:
    def worst(*columns: str) -> Reach:
        found = {row.reach(*columns) for row in rows}
        return "yes" if "yes" in found else "maybe" if "maybe" in found else "no"

    def said(name: str, reach: Reach) -> str:
        return name if reach == "yes" else f"maybe {name}"

    seen = {name: worst(*columns) for name, columns in _VIOLATIONS.items()}
    if any(reach != "no" for reach in seen.values()):
        return ", ".join(said(name, reach) for name, reach in seen.items() if reach != "no")
    loss = worst("loss")
    return "local" if loss == "no" else said("three-factor", loss)


def require_verdict(claim: str) -> None:
    """Raises ValueError if the claim has a word that is in no audit's verdict."""
    known = ["local", "three-factor", *_VIOLATIONS, "shared weights"]
    unknown = [part for part in claim.split(", ") if part.removeprefix("maybe ") not in known]
    if unknown:
        raise ValueError(
            f"verdict {claim!r} is none of an audit: {unknown[0]!r} is not one of {', '.join(known)}; several are "
            "separated by a comma and a space, in this order"
        )


def _cell(row: AuditedLeaf, column: str) -> str:
    reach = row.reach(column)
    if reach != "yes" or column not in _NAMED:
        return "·" if reach == "no" else reach
    first, *more = sorted({source.name for source in row.sources[column] if source.through is None})
    return f"{first} +{len(more)}" if len(more) > 1 else ", ".join([first, *more])


def _sorted(sources: frozenset[Source]) -> list[Source]:
    return sorted(sources, key=lambda source: (source.name, source.through or ""))
