"""The contracts of nl_jax: objectives, estimators, learners.

A network is a program of layers; a learning rule is a way to run that program::

    forward(params, inputs, propagate=feedforward)    -> outputs          # batch axis first
    objective(params, batch, propagate=feedforward)   -> losses           # [batch], never averaged
    estimator.init(key, params)                       -> state
    estimator.estimate(key, state, params, batch)     -> (grads, state, info)
    estimator.credit(key, state, params, batch)       -> {layer: LayerCredit}, if it forms credit per layer
    learner.init(key, params)                         -> state
    learner.step(key, state, batch)                   -> (state, info)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed key, as made by `jax.random.key`."""

Params: TypeAlias = Any
"""Any tree of floating-point arrays; for `nl.network`, nested dicts by layer."""

DECORRELATION = "decorrelation"
"""The name, among a layer's parameters, of the matrix that decorrelates its inputs before its weights see them."""

Batch: TypeAlias = Any
"""Any tree of arrays, examples along the first axis."""

State: TypeAlias = Any
"""Any tree of arrays without keys."""

Connection = Callable[..., Array]
"""`connection(params, *inputs) -> pre-activation`: maps lower layers' axons (activity) to ν, batch axis first.

A connection in which an example's ν depends on other examples (batch normalisation) must have an attribute
`mixes_examples = True`. This includes functions written by hand: `centred.mixes_examples = True`. Estimators that judge
an example's noise by its own loss alone would be biased there and raise an error."""

ActivationFn = Callable[[Array], Array]
"""`activation(pre-activation) -> axons`, the seeds' "update" of a layer."""

Axons = Mapping[str, Array]
"""Axons (activity) by layer."""

Initializer = Callable[..., Array]
"""`initializer(key, shape, dtype) -> array`, as in `jax.nn.initializers`: `lecun_normal()`, `glorot_uniform()`
(Xavier), `he_normal()` (Kaiming), `orthogonal()`, …"""


class Propagate(Protocol):
    """Applies one layer on behalf of a program.

    The default, `nl_jax.propagation.feedforward`, returns `activation(connection(params, *inputs))`,
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
    """A possible failure in compiled code, and whether it occurred.

    Compiled code cannot raise. It returns this value, and the caller raises (`nl.raise_if_failed`).

    Attributes:
      occurred: bool, a scalar; under `jax.vmap` or `jax.lax.scan` with their leading axes.
      message: what went wrong and what to change. It is part of the tree's structure and known while tracing.
    """

    occurred: Array
    message: str = field(metadata={"static": True})


class Info(NamedTuple):
    """What every estimator reports with its estimate.

    Attributes:
      loss: mean loss over the batch, a scalar. `reinforce`, and perturbation estimators without a clean baseline,
        report the average over their noisy evaluations; energy networks report the loss at rest; all others report
        the loss of the noiseless network.
      evaluations: int32 scalar, the cost of the estimate in evaluations of the objective (forward
        passes). Derivatives are counted by their multiply-adds: a full reverse sweep is two evaluations, a
        local parameter gradient (no credit to lower layers) one, a tangent one in node space and two in
        weight space (an overestimate for rank-one directions, whose own products are cheap).
      residuals: how far the estimate is from the conditions that define it (a tree of norms), or ()
        for estimators that have none. Unused residuals cost nothing, because jit removes them.
      failures: what can go wrong in the estimate, and whether it did; () for estimators that cannot fail. A failed
        estimate is NaN. `nl.fit` and `nl.restarts` raise; after your own call under `jax.jit` or `jax.vmap`, use
        `nl.raise_if_failed(info.failures)`. Outside `jax.jit` and `jax.vmap` the estimate itself raises.
      update: for a step of `nl.seeded`, the numbers from which its parameter update can be repeated; () otherwise.
    """

    loss: Array
    evaluations: Array
    residuals: State = ()
    failures: tuple[Failure, ...] = ()
    update: State = ()


class EstimatorInitFn(Protocol):
    """`init(key, params) -> state`. A state never contains keys."""

    def __call__(self, key: Key, params: Params) -> State: ...


class EstimateFn(Protocol):
    """`estimate(key, state, params, batch) -> (grads, state, info)`, a pure function.

    `grads` is calibrated: same tree, shapes, dtypes and scale as `jax.grad` of the mean loss.
    """

    def __call__(self, key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]: ...


class SampleFn(Protocol):
    """`sample(key, state, params, batch) -> (sampled, state, info)`, which returns the estimate as rates.

    An estimate Σ_k r_k ξ_k with directions ξ_k drawn from the key alone is stored as its rates r: a list of numbers.
    `sampled` is a `nl_jax.estimators.noise.engine.sampled_gradient.SampledGradient`; `sampled.formed(params)` is what
    `estimate` returns.
    """

    def __call__(self, key: Key, state: State, params: Params, batch: Batch) -> tuple[Any, State, Info]: ...


class LayerCredit(NamedTuple):
    """A layer's axons (activity), and the credit that an estimator gives them.

    L is the batch's summed loss; where examples do not interact, an example's credit is that of its own loss. All
    arrays are [batch, …]; for layers in loops the axis of steps comes first, as in `nl.propagation.record`.

    Attributes:
      axons: x, the values at which the layer learns.
      z: the estimator's ∂L/∂x (seed 003 eq. 2); None if it forms credit of pre-activations only.
      delta: δ, the estimator's ∂L/∂ν; the layer's weights learn by δ times the layer's input (seed 000,
        node perturbation; δ and γ of seed 001 §2).
    """

    axons: Array
    z: Array | None
    delta: Array

    @property
    def multipliers(self) -> Array | None:
        """Returns λ = −z, the multipliers of the Lagrangian (seed 000; see `nl.lagrangian`); None if z is None."""
        return None if self.z is None else -self.z


class CreditFn(Protocol):
    """`credit(key, state, params, batch) -> {layer: LayerCredit}`, a pure function.

    Returns the credit that `estimate` uses with the same key, state, parameters and batch.
    """

    def __call__(self, key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]: ...


def without_credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
    """Raises ValueError: the `credit` of an estimator that forms none."""
    del key, state, params, batch
    raise ValueError(
        "this estimator does not compute credit per layer. Use one that does, such as nl.backprop, "
        "nl.feedback_alignment, nl.predictive_coding or nl.node_perturbation; for nl.average, nl.mix or nl.partition, "
        "call credit of the estimators that they combine"
    )


class GradientEstimator(NamedTuple):
    """Pure functions that estimate the gradient of an objective's mean loss, and one that shows the credit used.

    Attributes:
      init: `init(key, params) -> state`.
      estimate: `estimate(key, state, params, batch) -> (grads, state, info)`.
      credit: `credit(key, state, params, batch) -> {layer: LayerCredit}`: axons, z, δ and multipliers by layer, for
        inspection. It raises a ValueError for estimators that do not form credit per layer. `estimate` does not call
        it, so it adds no cost to an estimate.
      sample: `sample(key, state, params, batch) -> (sampled, state, info)`: the gradient as a list of rates along
        directions drawn from the key (see `nl.seeded`); None for estimators whose gradient is not of this form.

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


Factory = Callable[[Objective], GradientEstimator]
"""`factory(objective) -> estimator`, such as `nl.backprop`."""


class LearnerState(NamedTuple):
    """All that a learner carries from one step to the next; a pytree without keys."""

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
    """An estimator joined with an optimizer: a pair of pure functions."""

    init: LearnerInitFn
    step: StepFn


def stateless(key: Key, params: Params) -> State:
    """Returns (): the `init` of an estimator without state."""
    del key, params
    return ()
