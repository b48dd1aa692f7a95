"""Node perturbation by measured changes of activity (Dalm et al. 2023)."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import widened
from nl_jax._core.require import (
    floating,
    layered,
    per_example,
    positive_hyperparameter,
    positive_integer,
    sampler,
    typed_key,
)
from nl_jax.base import (
    Array,
    Batch,
    GradientEstimator,
    Info,
    Key,
    LayerCredit,
    Objective,
    Params,
    Program,
    State,
    stateless,
)
from nl_jax.estimators.noise.directions import Sampler, gaussian
from nl_jax.estimators.noise.engine.chunks import Footprint, default_chunk, occupied, stacked, sum_over_samples
from nl_jax.estimators.noise.engine.shares import alone
from nl_jax.estimators.noise.engine.step_size import balanced, step_size
from nl_jax.estimators.noise.spaces import Noise, per_example_credit
from nl_jax.estimators.noise.spaces.coupling import mixing_layers, refuse_coupling
from nl_jax.propagation import Site, interpret, local, loops_around, record
from nl_jax.propagation.local import Local

_GAUSSIAN = gaussian()

NoisyProgram = Callable[..., Array]
"""`noisy(key, params, batch, propagate=feedforward) -> losses`, [batch]."""

Pass = tuple[Array, dict[str, Array]]
"""The losses of a pass, [batch], and the pre-activations of its measured layers."""

Reference = Literal["clean", "mean"]
"""What noisy passes are compared with: a clean pass, or their own mean."""


def activity_node_perturbation(
    objective: Objective,
    *,
    sigma: float | Array | None = None,
    num_samples: int = 1,
    directions: Sampler = _GAUSSIAN,
    noisy: NoisyProgram | None = None,
    reference: Reference = "clean",
    chunk: int | None = None,
) -> GradientEstimator:
    """Estimates credit from the measured change of all pre-activations between a noisy and a clean pass.

        δ^l = N ⟨(Ẽ − E) Δν^l / ‖Δν‖²⟩,   Δν^l = ν̃^l − ν^l,   ∂E/∂W^l ≈ δ^l x^{l−1}

    This is activity-based node perturbation, ANP (Dalm et al. 2023). N is the number of units in layers with
    parameters; ‖Δν‖² is the squared length of the change of all of them, for each example. The noise need not be known:
    Δν contains a layer's own noise and the effect of noise in lower layers. (The code of the paper's authors has √N
    instead of N; the learning rate absorbs the factor.)

    It is calibrated to `jax.grad` where no noise reaches the layer from below: for a network of one layer the estimate
    is unbiased as σ → 0. For deeper networks it is biased. With g the true credit of all layers and T = ∂ν/∂γ the
    response of activity to noise, E δ = N E[uuᵀ/‖u‖²] T⁻ᵀ g, u ~ N(0, T Tᵀ), which tends to (N/tr T Tᵀ) T g for many
    units: layer l also receives the credit of the lower layers, propagated up to it. `nl.theory.activity_perturbation`
    has the formula for linear networks.

    Args:
      objective: a per-example objective that takes `propagate`; it is run for the clean pass.
      sigma: σ, standard deviation of the noise in units of the pre-activations, above 0; by default chosen for their
        dtype, see `nl_jax.estimators.noise.engine.step_size`.
      num_samples: K, the number of noisy passes averaged.
      directions: sampler of the injected noise, from `nl.directions`.
      noisy: `noisy(key, params, batch, propagate) -> losses`, a program of the same layers with its own noise, used
        instead of the injected noise. It may be a model of a noisy device, or the device itself, which may ignore the
        key: its passes run one after another. Only noise in connections is measured as a layer's own; noise in an
        activation is seen only by the layers above.
      reference: "clean" compares each noisy pass with the pass of `objective`. "mean" compares it with the mean of
        the noisy passes, for a device that has no clean pass: the noise of a reference that is itself noisy would be
        common to all changes, and more samples would not average it out. Its Δν has the same direction statistics, so
        the expected estimate for a linear network is the same. Needs two samples, and stores the activity of all of
        them.
      chunk: passes evaluated at once, without `noisy`; by default chosen for the backend. The result does not depend
        on it.

    Returns:
      An estimator without state: K + 2 evaluations (one clean pass, K noisy ones, a local gradient). An example whose
      activity does not change contributes nothing. In a loop, the pre-activations of all steps are stored.

    Raises:
      ValueError: if a setting is out of range, the objective takes no `propagate`, `sigma`, `directions` or `chunk` is
        given together with `noisy`, or `reference` is "mean" with one sample; when run, if a layer's first axis is not
        the batch, noise reaches a layer that mixes examples, or the layers of `noisy` differ from the objective's.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([2, 1], activation=nl.activations.tanh(), weight_init=jax.nn.initializers.ones)
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> estimator = activity_node_perturbation(objective, num_samples=10)
    >>> batch = jnp.ones([4, 2]), jnp.zeros([4, 1])
    >>> grads, _, info = jax.jit(estimator.estimate)(jax.random.key(0), (), net.init(jax.random.key(1)), batch)
    >>> round(float(grads["output"]["bias"][0]), 2), int(info.evaluations)
    (2.0, 12)
    """
    layered("activity_node_perturbation", objective)
    sampler("directions", directions)
    sigma = None if sigma is None else positive_hyperparameter("sigma", sigma)
    num_samples = positive_integer("num_samples", num_samples)
    chunk = None if chunk is None else positive_integer("chunk", chunk)
    if noisy is not None:
        layered("noisy of activity_node_perturbation", noisy)
        if sigma is not None or directions is not _GAUSSIAN:
            raise ValueError("sigma and directions must be left out with noisy, a program with noise of its own")
        if chunk is not None:
            raise ValueError("chunk must be left out with noisy, whose passes run one after another")
    if reference not in get_args(Reference):
        raise ValueError(f"reference must be one of {', '.join(map(repr, get_args(Reference)))}; got {reference!r}")
    if reference == "mean" and num_samples < 2:
        raise ValueError("num_samples must be at least 2 with reference='mean': the mean of one pass is that pass")

    def judged(key: Key, params: Params, batch: Batch) -> tuple[Local, dict[str, Array]]:
        """Returns the clean run, and δ by layer, averaged over samples."""
        typed_key(key)
        floating(params)
        clean = local(objective)(params, batch)
        losses, nodes = per_example(clean.outputs), clean.responses
        _require_batch(nodes, losses.size)
        _refuse_mixing(objective, params, batch, nodes)
        units = sum(nu.size for nu in nodes.values()) // losses.size
        if noisy is None:
            draw = _injected(nodes, sigma, units, Noise(directions, key, num_samples))
            noisy_pass = lambda index: _measured(objective, nodes, params, batch, draw(index))
        else:
            own = lambda index: functools.partial(noisy, jax.random.fold_in(key, index))
            noisy_pass = lambda index: _measured(own(index), nodes, params, batch)
        usual = default_chunk(num_samples, Footprint(occupied(nodes), weights_of_its_own=False))
        at_once = chunk or usual if noisy is None else 1  # vmap would run a device that ignores its key once for all
        indices = alone(num_samples).indices
        if reference == "clean":
            total = _total(noisy_pass, widened((losses, nodes)), units, indices, at_once)
        else:
            passes = jax.lax.map(noisy_pass, indices, batch_size=None if at_once == 1 else at_once)
            mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), passes)
            total = _total(lambda index: jax.tree.map(lambda x: x[index], passes), mean, units, indices, at_once)
        return clean, jax.tree.map(lambda delta, nu: (delta / num_samples).astype(nu.dtype), total, nodes)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        clean, delta = judged(key, params, batch)
        losses = clean.outputs
        of_mean = jax.tree.map(lambda d: d / losses.size, delta)
        grads = clean.pull(jnp.full_like(losses, 1 / losses.size), of_mean)
        return grads, state, Info(jnp.mean(losses), jnp.int32(num_samples + 2))

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del state
        _, delta = judged(key, params, batch)
        axons = record(objective)(params, batch)[1]
        return {name: LayerCredit(axons[name], None, d) for name, d in delta.items()}

    return GradientEstimator(stateless, estimate, credit)


def credit_of(loss_change: Array, change: dict[str, Array], units: int) -> dict[str, Array]:
    """Computes δ^l = N (Ẽ − E) Δν^l/‖Δν‖², for each example separately.

    Args:
      loss_change: Ẽ − E, [batch].
      change: Δν by layer, [batch, …], with loop axes first.
      units: N.
    """
    parts = [jnp.moveaxis(x, loops_around(name), 0) for name, x in change.items()]
    square: Any = sum(jnp.sum(x**2, axis=tuple(range(1, x.ndim))) for x in parts)
    rate = jnp.where(square > 0, units * loss_change / jnp.where(square > 0, square, 1), 0)

    def of_layer(name: str, x: Array) -> Array:
        after = x.ndim - loops_around(name) - 1
        return x * rate.reshape([1] * loops_around(name) + [-1] + [1] * after)

    return {name: of_layer(name, x) for name, x in change.items()}


def _total(of: Callable[[Array], Pass], reference: Pass, units: int, indices: Array, at_once: int) -> dict[str, Array]:
    """Sums the credit of the passes `of(index)`, each compared with the reference."""

    def credit(index: Array) -> dict[str, Array]:
        loss_change, change = jax.tree.map(jnp.subtract, of(index), reference)
        return credit_of(loss_change, change, units)

    sums = lambda some: jax.tree.map(lambda delta: jnp.sum(delta, axis=0), stacked(credit)(some))
    return sum_over_samples(sums, indices, at_once)


def _measured(
    program: Program, nodes: dict[str, Array], params: Params, batch: Batch, offsets: dict[str, Array] | None = None
) -> Pass:
    """Runs a noisy pass; ValueError unless it has the measured layers."""

    def layer(site: Site, offset: Array | None) -> tuple[Array, Array | None]:
        nu = site.preactivation()
        nu = nu if offset is None else nu + offset
        return site.activation(nu), nu if site.name in nodes else None

    losses, found = interpret(program, layer)(params, batch, offsets)
    here, there = ({name: nu.shape for name, nu in x.items()} for x in (found, nodes))
    if here != there:
        raise ValueError(f"noisy must run the objective's layers, with pre-activations of shapes {there}; got {here}")
    return widened((per_example(losses), found))


def _injected(
    nodes: dict[str, Array], sigma: float | Array | None, units: int, noise: Noise
) -> Callable[[Array], dict[str, Array]]:
    """Returns `draw(index) -> {layer: σ ξ}`, independent for every example and step."""
    step = step_size(sigma, balanced(1), [nu.dtype for nu in nodes.values()], units)
    template = jax.eval_shape(lambda: {name: jnp.moveaxis(nu, loops_around(name), 0) for name, nu in nodes.items()})

    def draw(index: Array) -> dict[str, Array]:
        examples = next(iter(template.values())).shape[0]
        drawn = per_example_credit().draw(noise, index, template, examples)
        gamma = jax.tree.map(lambda xi: jnp.asarray(step, xi.dtype) * xi, drawn)
        return {name: jnp.moveaxis(x, 0, loops_around(name)) for name, x in gamma.items()}

    return draw


def _require_batch(nodes: dict[str, Array], examples: int) -> None:
    if not nodes:
        raise ValueError("activity_node_perturbation needs a layer whose pre-activation depends on the parameters")
    for name, nu in nodes.items():
        loops = loops_around(name)
        if nu.shape[loops : loops + 1] != (examples,):
            raise ValueError(
                f"activity_node_perturbation needs every layer's first axis to be the batch of {examples}; layer "
                f"{name!r} has shape {nu.shape[loops:]}: use nl.node_perturbation with per_batch_credit()"
            )


def _refuse_mixing(objective: Objective, params: Params, batch: Batch, nodes: dict[str, Array]) -> None:
    mixing = mixing_layers(objective)
    shapes = {name: jax.ShapeDtypeStruct(nu.shape, nu.dtype) for name, nu in nodes.items()}
    refuse_coupling(
        lambda offsets: mixing(params, batch, offsets)[1], shapes,
        "use nl.node_perturbation with credit=nl.spaces.per_batch_credit()",
    )  # fmt: skip
