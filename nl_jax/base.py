"""The contracts everything in nl_jax follows, and nothing else.

A network is a program of layers; a learning rule is a way to run that program::

    forward(params, inputs, propagate=feedforward)    -> outputs          # batch axis first
    objective(params, batch, propagate=feedforward)   -> losses           # [batch], never averaged
    estimator.init(key, params)                       -> state
    estimator.estimate(key, state, params, batch)     -> (grads, state, info)
    learner.init(key, params)                         -> state
    learner.step(key, state, batch)                   -> (state, info)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed key, as `jax.random.key` makes them."""

Params: TypeAlias = Any
"""Any tree of floating-point arrays; of `nl.network`, nested dicts by layer."""

Batch: TypeAlias = Any
"""Any tree of arrays, examples along the first axis."""

State: TypeAlias = Any
"""Any tree of arrays, never a key."""

Connection = Callable[..., Array]
"""`connection(params, *inputs) -> pre-activation`: lower layers' axons to ν, batch axis first.

One that mixes examples, so that an example's ν depends on the others (batch normalisation), says so by an attribute
`mixes_examples = True`; a function written by hand as well, `centred.mixes_examples = True`. Estimators that judge an
example's noise by its own loss alone would be biased there, and refuse."""

ActivationFn = Callable[[Array], Array]
"""`activation(pre-activation) -> axons`, the seeds' "update" of a layer."""


class Propagate(Protocol):
    """Applies one layer on behalf of a program.

    By default (`nl_jax.propagation.feedforward`) it returns `activation(connection(params, *inputs))`,
    the seeds' x^l = f(W x^{l-1} + b). Every learning rule that needs layers is another such function.
    """

    def __call__(
        self,
        name: str,
        connection: Connection,
        activation: ActivationFn,
        params: Params,
        /,
        *inputs: Array,
    ) -> Array: ...


Program = Callable[..., Any]
"""`program(params, inputs, propagate=feedforward) -> outputs`: a forward function or an objective."""

Forward = Callable[..., Any]
"""`forward(params, inputs, propagate=feedforward) -> outputs`; `propagate` is optional, see README."""

Objective = Callable[..., Array]
"""`objective(params, batch, propagate=feedforward) -> losses`, one loss per example, shape [batch]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Failure:
    """Something that can go wrong in compiled code, and whether it did.

    Compiled code cannot raise: it returns this value, and whoever runs it raises (`nl.raise_if_failed`).

    Attributes:
      occurred: bool, a scalar; after `jax.vmap` or `jax.lax.scan` with their axes in front.
      message: what went wrong and what to change. It is part of the tree's structure and known while tracing.
    """

    occurred: Array
    message: str = field(metadata={"static": True})


class Info(NamedTuple):
    """What every estimate reports, whatever the estimator.

    Attributes:
      loss: mean loss over the batch, a scalar. Of `reinforce` and perturbation estimators without a clean baseline,
        the average over the noisy evaluations they made; of energy networks, that at rest; of all others, the
        noiseless network's.
      evaluations: int32 scalar, what the estimate cost in evaluations of the objective (forward
        passes). Derivative work is counted by its multiply-adds: a full reverse sweep is two evaluations, a
        local parameter gradient (no credit to lower layers) one, a tangent one in node space and two in
        weight space (somewhat less in truth for rank-one directions, whose own products are cheap).
      residuals: how far the estimate is from the conditions that define it (a tree of norms), or ()
        for estimators that have none. Free unless used: jit removes what nobody reads.
      failures: what can go wrong in the estimate, and whether it did; () for estimators that cannot fail. A failed
        estimate is NaN. `nl.fit` and `nl.restarts` raise; after a call of your own under `jax.jit` or `jax.vmap`, use
        `nl.raise_if_failed(info.failures)`. Without them the estimate itself raises.
      update: of a step of `nl.seeded` the numbers that its change of the parameters can be repeated from; () elsewhere.
    """

    loss: Array
    evaluations: Array
    residuals: State = ()
    failures: tuple[Failure, ...] = ()
    update: State = ()


class EstimatorInitFn(Protocol):
    """`init(key, params) -> state`. Keys never live in a state."""

    def __call__(self, key: Key, params: Params) -> State: ...


class EstimateFn(Protocol):
    """`estimate(key, state, params, batch) -> (grads, state, info)`, a pure function.

    `grads` is calibrated: same tree, shapes, dtypes and scale as `jax.grad` of the mean loss.
    """

    def __call__(self, key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]: ...


class SampleFn(Protocol):
    """`sample(key, state, params, batch) -> (sampled, state, info)`, the estimate as a list of numbers.

    `sampled` is a `nl_jax.estimators.sampled.SampledGradient`; `sampled.formed(params)` is what `estimate` returns.
    """

    def __call__(self, key: Key, state: State, params: Params, batch: Batch) -> tuple[Any, State, Info]: ...


class GradientEstimator(NamedTuple):
    """Pure functions that estimate the gradient of an objective's mean loss.

    Attributes:
      init: makes the estimator's state.
      estimate: returns the gradient.
      sample: returns it as a list of numbers, where it is one (`nl.seeded`); None otherwise.
    """

    init: EstimatorInitFn
    estimate: EstimateFn
    sample: SampleFn | None = None


class LearnerState(NamedTuple):
    """All that a learner carries from one step to the next; a pytree, and no keys in it."""

    params: Params
    estimator: State
    optimizer: State
    step: Array


class LearnerInitFn(Protocol):
    """`init(key, params) -> state`."""

    def __call__(self, key: Key, params: Params) -> LearnerState: ...


class StepFn(Protocol):
    """`step(key, state, batch) -> (state, info)`, to be jitted by the caller."""

    def __call__(self, key: Key, state: LearnerState, batch: Batch) -> tuple[LearnerState, Info]: ...


class Learner(NamedTuple):
    """An estimator and an optimizer, joined: a pair of pure functions."""

    init: LearnerInitFn
    step: StepFn


def stateless(key: Key, params: Params) -> State:
    """The `init` of an estimator that carries nothing from one estimate to the next."""
    del key, params
    return ()
