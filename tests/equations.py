"""Counting the equations of a traced function."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def equations(function: Callable, *arguments: Any) -> int:
    """How many equations JAX traces for a call, those of loops and inner functions once each."""
    return count(jax.make_jaxpr(function)(*arguments))


def count(value: Any) -> int:
    """How many equations a traced program has, or several together."""
    if isinstance(value, ClosedJaxpr):
        return count(value.jaxpr)
    if isinstance(value, Jaxpr):
        return sum(1 + sum(map(count, equation.params.values())) for equation in value.eqns)
    return sum(map(count, value)) if isinstance(value, tuple | list) else 0
