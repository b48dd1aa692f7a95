"""The types of directions, and how a direction that is not an array acts on a weight."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from nl_jax._core.products import LazyWeight
from nl_jax.base import Array, Key, Params

Direction = Params
"""A tree like the parameters, its leaves arrays or `Structured`."""

Sampler = Callable[[Key, Array, Params], Direction]
"""`sampler(key, index, template) -> direction`, the index-th (int32 scalar) of the estimate that `key` belongs to."""


def parts(direction: Direction) -> list[Any]:
    """Returns a direction's parts, parameter by parameter: arrays or `Structured`."""
    return jax.tree.leaves(direction, is_leaf=lambda part: isinstance(part, Structured))


class Structured(abc.ABC):
    """A weight's direction V that is not stored as an array; subclasses are pytrees.

    Attributes:
      of_each_example: whether V differs for every example, to be judged by that example's own loss.
    """

    of_each_example: ClassVar[bool] = False

    @abc.abstractmethod
    def displace(self, weight: Array, sigma: Any) -> LazyWeight:
        """Returns W + σ V, to be multiplied without being formed."""

    @abc.abstractmethod
    def added(self, total: Array, change: Array) -> Array:
        """Computes total + Σ_k mean_n (change_kn V_kn) over stacked directions (axis k first), for `change` [k, batch].

        A change that all examples share may be given as [k, 1].
        """
