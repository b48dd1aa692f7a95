"""The contracts of nl_jax: objectives, estimators, learners.

A network is a program of layers; a learning rule is a way to run that program::

    forward(params, inputs, propagate=feedforward)    -> outputs          # batch axis first
    objective(params, batch, propagate=feedforward)   -> losses           # [batch], never averaged
    estimator.init(key, params)                       -> state
    estimator.estimate(key, state, params, batch)     -> (grads, state, info)
    estimator.credit(key, state, params, batch)       -> {layer: LayerCredit}, of those that teach by layers
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

DECORRELATION = "decorrelation"
"""What the matrix is called, among a layer's parameters, that decorrelates its inputs before its weights see them."""

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


class LayerCredit(NamedTuple):
    """A layer's axons, and the credit that an estimator gives them.

    Credit is of the batch's summed loss L: where examples do not interact, of each example's own. All arrays are
    [batch, …]; of layers in loops the steps come first, as in `nl.propagation.record`.

    Attributes:
      axons: x, the values at which the layer learns.
      z: what the estimator takes for ∂L/∂x (seed 003 eq. 2); None if it forms credit of pre-activations alone.
      delta: δ, what it takes for ∂L/∂ν, so that the layer's weights learn by δ times what the layer receives (seed 000,
        node perturbation; δ and γ of seed 001 §2).
    """

    axons: Array
    z: Array | None
    delta: Array

    @property
    def multipliers(self) -> Array | None:
        """λ = −z, the multipliers of the Lagrangian (seed 000; see `nl.lagrangian`); None where z is."""
        return None if self.z is None else -self.z


class CreditFn(Protocol):
    """`credit(key, state, params, batch) -> {layer: LayerCredit}`, a pure function.

    The credit that `estimate` teaches by, with the same key, state, parameters and batch.
    """

    def __call__(self, key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]: ...


def without_credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
    """The `credit` of an estimator that forms none: a ValueError."""
    del key, state, params, batch
    raise ValueError(
        "this estimator has no credit of layers to show: weight_perturbation, for one, moves all weights at once and "
        "forms none. Ask one that teaches layer by layer, such as nl.backprop, nl.feedback_alignment, "
        "nl.predictive_coding or nl.node_perturbation; of nl.average, nl.mix or nl.partition, ask what it is made of"
    )


class GradientEstimator(NamedTuple):
    """A pair of pure functions that estimate the gradient of an objective's mean loss, and one that shows how.

    Attributes:
      init: `init(key, params) -> state`.
      estimate: `estimate(key, state, params, batch) -> (grads, state, info)`.
      credit: `credit(key, state, params, batch) -> {layer: LayerCredit}`: axons, z, δ and multipliers by layer, to be
        looked at. Estimators that teach by credit of layers have it; that of others raises a ValueError. An estimate
        neither calls it nor pays for it.
      sample: `sample(key, state, params, batch) -> (sampled, state, info)`: the gradient as a list of numbers, where it
        is one (`nl.seeded`); None otherwise.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> estimator = nl.backprop(nl.supervised(net.apply, nl.losses.cross_entropy))
    >>> at = jax.random.key(0), (), net.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> credit = jax.jit(estimator.credit)(*at)
    >>> {name: layer.delta.shape for name, layer in credit.items()}
    {'hidden1': (5, 4), 'output': (5, 2)}
    """

    init: EstimatorInitFn
    estimate: EstimateFn
    credit: CreditFn = without_credit
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
