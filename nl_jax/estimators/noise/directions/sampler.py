"""Named samplers of directions, so that a training log can record which one was used."""

from collections.abc import Callable
from typing import Any

import jax

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.blocks import Blocks
from nl_jax.estimators.noise.directions.structured import Direction, Structured


class NamedSampler:
    """A sampler with a name and settings.

    Args:
      name: its factory in `nl.directions`.
      draw: `draw(key, index, template) -> direction`, large parameters as `Blocks`, which store nothing. When called as
        a sampler, it forms these as arrays.
      **settings: the arguments of the factory.
    """

    def __init__(self, name: str, draw: Callable[[Key, Array, Params], Direction], **settings: Any) -> None:
        self.name, self.draw, self.settings = name, draw, settings

    def __call__(self, key: Key, index: Array, template: Params) -> Direction:
        return formed(self.draw(key, index, template))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"


def formed(direction: Direction) -> Direction:
    """Returns the direction with all `Blocks` as arrays."""
    return jax.tree.map(
        lambda part: part.formed() if isinstance(part, Blocks) else part,
        direction,
        is_leaf=lambda part: isinstance(part, Structured),
    )


def drawing(sampler: Callable[[Key, Array, Params], Direction]) -> Callable[[Key, Array, Params], Direction]:
    """Returns the sampler's `draw`, which does not form large parameters; a sampler written by hand is its own."""
    return sampler.draw if isinstance(sampler, NamedSampler) else sampler
