"""The contract of a local rule: what it is given, and what it returns.

    rule.init(params)                                -> state
    rule.change(state, params, pre, post, teacher)   -> (change, state)

There is no argument through which another layer could be seen: locality is by construction.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from nl_jax.base import Array, Params, State

Change = dict[str, Array]
"""By name, what is to be added to a layer's parameters; those left out stay as they are."""


class InitFn(Protocol):
    """`init(params) -> state`, of one layer."""

    def __call__(self, params: Params) -> State: ...


class ChangeFn(Protocol):
    """`change(state, params, pre, post, teacher) -> (change, state)`, of one layer.

    Args:
      state: the rule's own.
      params: the layer's, `params["weight"]` being W [inputs, units].
      pre: x, its inputs, [examples, inputs].
      post: y, its axons, [examples, units].
      teacher: what its axons should be, [examples, units]; None unless the rule is supervised.

    Returns:
      The change, a mean over the examples, and the state to hand in next.
    """

    def __call__(
        self, state: State, params: Params, pre: Array, post: Array, teacher: Array | None
    ) -> tuple[Change, State]: ...


class Rule(NamedTuple):
    """A local rule: a pair of pure functions of one layer.

    Attributes:
      init: `init(params) -> state`.
      change: `change(state, params, pre, post, teacher) -> (change, state)`.
      supervised: whether it asks for a teacher.
    """

    init: InitFn
    change: ChangeFn
    supervised: bool = False


def unsupervised(change: Callable[[Params, Array, Array], Change]) -> Rule:
    """A rule without state or teacher: `change(params, x, y)`."""
    return Rule(_nothing, lambda state, params, pre, post, teacher: (change(params, pre, post), state))


def supervised(change: Callable[[Params, Array, Array, Array], Change]) -> Rule:
    """A rule without state, with a teacher: `change(params, x, y, t)`."""
    return Rule(_nothing, lambda state, params, pre, post, teacher: (change(params, pre, post, teacher), state), True)


def mean_outer(a: Array, b: Array) -> Array:
    """⟨a bᵀ⟩ over the examples along the first axis."""
    return a.T @ b / a.shape[0]


def mean(a: Array) -> Array:
    """⟨a⟩ᵀ over the examples along the first axis: a row, to stand beside a weight's units."""
    return a.mean(axis=0, keepdims=True)


def _nothing(params: Params) -> State:
    del params
    return ()
