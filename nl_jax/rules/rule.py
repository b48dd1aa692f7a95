"""The interface of a local rule: its arguments and return values.

    rule.init(params)                                -> state
    rule.change(state, params, pre, post, teacher)   -> (change, state)

No argument gives access to another layer, so a rule is local by construction.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax._core.numerics import floating_dtype, in_one_dtype
from nl_jax.base import Array, Params, State

Change = dict[str, Array]
"""The values to add to a layer's parameters, by name; parameters without an entry do not change."""


class InitFn(Protocol):
    """`init(params) -> state` for one layer."""

    def __call__(self, params: Params) -> State: ...


class ChangeFn(Protocol):
    """`change(state, params, pre, post, teacher) -> (change, state)` for one layer.

    Args:
      state: the rule's state.
      params: the layer's parameters; `params["weight"]` is W [inputs, units].
      pre: x, the layer's inputs, [examples, inputs].
      post: y, the layer's axons (activity), [examples, units].
      teacher: target values of the axons, [examples, units]; None unless the rule is supervised.

    Returns:
      The change, a mean over the examples, and the next state.
    """

    def __call__(
        self, state: State, params: Params, pre: Array, post: Array, teacher: Array | None
    ) -> tuple[Change, State]: ...


class Rule(NamedTuple):
    """A local rule: a pair of pure functions of one layer.

    Attributes:
      init: `init(params) -> state`.
      change: `change(state, params, pre, post, teacher) -> (change, state)`.
      supervised: whether it needs a teacher.
    """

    init: InitFn
    change: ChangeFn
    supervised: bool = False


def unsupervised(change: Callable[[Params, Array, Array], Change]) -> Rule:
    """Makes a rule without state or teacher from `change(params, x, y)`."""
    return Rule(_nothing, in_wide_dtype(lambda state, params, x, y, t: (change(params, x, y), state)))


def supervised(change: Callable[[Params, Array, Array, Array], Change]) -> Rule:
    """Makes a rule with a teacher and without state from `change(params, x, y, t)`."""
    return Rule(_nothing, in_wide_dtype(lambda state, params, x, y, t: (change(params, x, y, t), state)), True)


def in_wide_dtype(change: ChangeFn) -> ChangeFn:
    """Makes a change computed in float32 at least, because sums over examples overflow half precision.

    The change returned has the dtypes of the parameters, and the state keeps its own.
    """

    def narrowed(state: State, params: Params, pre: Array, post: Array, teacher: Array | None) -> tuple[Change, State]:
        found, after = change(*in_one_dtype((state, params, pre, post, teacher)))
        own = lambda name: floating_dtype(params.get(name, params["weight"]).dtype)  # a wrong name is told elsewhere
        found = {name: values.astype(own(name)) for name, values in found.items()}
        return found, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)

    return narrowed


def mean_outer(a: Array, b: Array) -> Array:
    """Averages the outer product ⟨a bᵀ⟩ over the examples along the first axis."""
    return sum_outer(a, b) / a.shape[0]


def sum_outer(a: Array, b: Array) -> Array:
    """Sums the outer product Σ a bᵀ over the examples along the first axis, whatever mesh they are laid over."""
    laid = [x.sharding for x in map(jax.typeof, (a, b))]
    if not any(any(sharding.spec) for sharding in laid):
        return jnp.matmul(a.T, b)
    # With explicit axes JAX does not choose the layout of a sum over devices: inputs and units stay where they are.
    inputs, units = (next(iter(sharding.spec[1:]), None) for sharding in laid)
    spec = PartitionSpec(inputs, None if units == inputs else units)
    return jnp.matmul(a.T, b, out_sharding=NamedSharding(laid[0].mesh, spec))


def mean(a: Array) -> Array:
    """Averages ⟨a⟩ᵀ over the examples along the first axis; returns a row that broadcasts over a weight's inputs."""
    return a.mean(axis=0, keepdims=True)


def _nothing(params: Params) -> State:
    del params
    return ()
