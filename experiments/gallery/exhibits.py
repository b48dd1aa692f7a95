"""Reads the list of the experiments that the gallery shows, `exhibits.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exhibit:
    """An experiment in the gallery; `equation` and `claim` are HTML."""

    module: str
    """The module that `python -m` runs."""
    title: str
    equation: str
    """The equation that the experiment tests; without a theory to test, the formula of what it compares."""
    claim: str
    """What the figure shows, and the source of the equation."""
    figures: Mapping[str, str]
    """Names of its figures and their alternative texts; the first figure is the thumbnail's."""

    @property
    def name(self) -> str:
        """Name of its folder and, if it judges a result, of its verdict's file."""
        return self.module.rpartition(".")[2]


def read(path: Path) -> tuple[Exhibit, ...]:
    """Reads exhibits from a TOML file; line breaks within a text count as spaces."""
    folded = lambda text: " ".join(text.strip().splitlines())
    listed = tomllib.loads(path.read_text(encoding="utf-8"))["exhibit"]
    return tuple(
        Exhibit(
            figures={name: folded(text) for name, text in one.pop("figures").items()},
            **{name: folded(text) for name, text in one.items()},
        )
        for one in listed
    )


EXHIBITS = read(Path(__file__).with_name("exhibits.toml"))
