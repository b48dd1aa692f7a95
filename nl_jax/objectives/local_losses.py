"""Local losses: a network divided into blocks, each with its own heads and losses (Ren et al. 2022)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from nl_jax._core.require import positive_integer, takes
from nl_jax.activations import identity
from nl_jax.base import Array, Batch, Key, Objective, Params, Propagate
from nl_jax.objectives.blocks import Block, run_block, split
from nl_jax.objectives.judged import pair
from nl_jax.propagation import feedforward, record

_IDENTITY = identity()


class BlockPart(NamedTuple):
    """One block's parameters, and its losses as a function of these parameters only.

    Attributes:
      params: the parameters of its layers and its head, by layer.
      objective: `objective(params, batch, propagate=feedforward) -> losses`, with `batch` as made by
        `LocalLosses.received`; one loss for each example, position and group. Only the block's own layers are run.
        Examples, positions and groups are merged into the first axis, so that noise in a unit is judged by the loss
        that the unit feeds.
    """

    params: dict[str, Params]
    objective: Objective


class LocalLosses(NamedTuple):
    """A network with local losses, as pure functions.

    Attributes:
      init: `init(key, dtype=float32) -> params`, the parameters of the network and of the heads ("hidden1.head").
      objective: `objective(params, (inputs, targets), propagate=feedforward) -> losses`, shape [batch]: the sum over
        blocks of each block's loss, a mean over positions and groups. No derivative passes between blocks.
      apply: `apply(params, inputs, propagate=feedforward) -> outputs`, the predictions of the last block's heads,
        averaged over positions and groups, [batch, outputs].
      outputs: `outputs(params, inputs, propagate=feedforward) -> {block: outputs}`, the same for every block.
      parts: `parts(params) -> {block: BlockPart}`, the separate blocks, as `nl.by_block` trains them.
      received: `received(params, (inputs, targets)) -> {block: batch}`: the inputs of each block, by one forward pass.
      losses_per_example: {block: positions times groups}.
    """

    init: Callable[..., Params]
    objective: Objective
    apply: Callable[..., Array]
    outputs: Callable[..., dict[str, Array]]
    parts: Callable[[Params], dict[str, BlockPart]]
    received: Callable[[Params, Batch], dict[str, Batch]]
    losses_per_example: dict[str, int]


def local_losses(
    network: Any,
    loss: Callable[[Any, Any], Array],
    num_outputs: int,
    *,
    blocks: Sequence[str] | None = None,
    groups: int = 1,
    patches: bool = False,
    head_init: Callable[..., Array] = initializers.lecun_normal(),
) -> LocalLosses:
    """Divides a network into blocks, each with a linear head that predicts the targets from the block's last layer.

        E = Σ_b mean over positions p and groups g of ℓ(W_bg x^b_pg + b_bg, y)

    Derivatives stop between blocks (blockwise losses). With `groups` each head reads a part of the last layer's
    channels (groupwise); with `patches` it reads each position of an image (patchwise; positions share their heads). A
    unit then feeds a single loss, which contains the noise of fewer other units. The fewer units feed a loss, the lower
    the variance of an estimate from noise in units (`nl.theory.perturbation.together`).

    `nl.by_block(local_losses(…), factory)` trains with any estimator. Estimators that differentiate can also use
    `.objective` directly. All noise is then judged by the sum of the losses, and an estimator that only evaluates, such
    as `nl.node_perturbation`, also measures the effect of lower blocks on the losses of higher ones. Ren et al. let a
    head also read other positions and groups, without credit; here it does not.

    Args:
      network: an `nl.network`. Heads read its last layer, which is usually a hidden layer.
      loss: `loss(outputs, targets) -> [batch]`, such as `nl.losses.cross_entropy`.
      num_outputs: number of outputs of every head.
      blocks: the names of the layers that end a block; by default all layers with parameters. With the last layer as
        the only block, the network has one loss.
      groups: G, the number of groups of the channels of a block's last layer.
      patches: whether each position of a layer [height, width, channels] has a separate loss. Otherwise a head reads
        the mean over positions. Vectors have one position.
      head_init: initializer for a head's weight, shape [channels / G, num_outputs].

    Returns:
      A `LocalLosses`. A head's parameters are `params["hidden1.head"]`, "weight" [channels, num_outputs] and "bias"
      [num_outputs], with a leading axis G if there is more than one group.

    Raises:
      ValueError: if blocks are not layers with parameters, are out of order or do not end at the last such layer; if G
        does not divide the channels; for patches without an image; for groups or patches with a block of several
        layers with parameters, where a lower unit would feed several of them; if a layer is named like a head.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> trunk = nl.mlp([3, 8, 8], activation=nl.activations.tanh(), output_activation=nl.activations.tanh())
    >>> local = local_losses(trunk, nl.losses.cross_entropy, 2, groups=4)
    >>> params = local.init(jax.random.key(0))
    >>> params["hidden1.head"]["weight"].shape, local.apply(params, jnp.ones([5, 3])).shape
    ((4, 2, 2), (5, 2))
    >>> estimator = nl.by_block(local, lambda objective: nl.forward_gradient(objective, space=nl.spaces.nodes))
    >>> state, batch = estimator.init(jax.random.key(1), params), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> grads, _, info = jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)
    >>> sorted(grads)
    ['hidden1', 'hidden1.head', 'output', 'output.head']
    """
    if not all(hasattr(network, name) for name in ("init", "apply", "shapes", "layers")):
        raise ValueError(f"network must be made by nl.network or nl.mlp, got {network!r}")
    takes("loss", loss, 2, "a loss of outputs and targets, such as nl.losses.cross_entropy")
    num_outputs = positive_integer("num_outputs", num_outputs)
    cut = split(network, blocks, groups, patches)

    def init(key: Key, dtype: Any = jnp.float32) -> Params:
        keys = jax.random.split(key, 1 + len(cut))
        heads = {}
        for block, key in zip(cut, keys[1:], strict=True):
            shape = block.shape[-1] // groups, num_outputs
            weights = [head_init(k, shape, dtype) for k in jax.random.split(key, groups)]
            head = {"weight": jnp.stack(weights), "bias": jnp.zeros((groups, num_outputs), dtype)}
            heads[block.head] = head if groups > 1 else jax.tree.map(lambda x: x[0], head)
        return network.init(keys[0], dtype) | heads

    def answers(params: Params, inputs: Array, propagate: Propagate) -> dict[str, Array]:
        """Returns every block's predictions, [batch, losses, outputs]."""
        below: dict[str, Array] = {}
        found = {}
        for block in cut:
            axons = run_block(network, block, params, inputs, below, propagate)
            below |= jax.lax.stop_gradient(axons)

            def predict(own: Params, x: Array, block: Block = block) -> Array:
                return block.predict(own, block.apart(x)).reshape(len(x), block.losses, num_outputs)

            found[block.name] = propagate(block.head, predict, _IDENTITY, params[block.head], axons[block.name])
        return found

    def objective(params: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
        inputs, targets = pair(batch, "targets")
        found = answers(params, inputs, propagate)
        judged = [block.judge(loss, found[block.name].reshape(-1, num_outputs), targets) for block in cut]
        return jnp.sum(jnp.stack([jnp.mean(losses.reshape(len(inputs), -1), axis=1) for losses in judged]), axis=0)

    def outputs(params: Params, inputs: Array, propagate: Propagate = feedforward) -> dict[str, Array]:
        return {name: jnp.mean(x, axis=1) for name, x in answers(params, inputs, propagate).items()}

    def apply(params: Params, inputs: Array, propagate: Propagate = feedforward) -> Array:
        return outputs(params, inputs, propagate)[cut[-1].name]

    def of_block(
        block: Block, others: Params, params: Params, batch: Batch, propagate: Propagate = feedforward
    ) -> Array:
        (inputs, below), targets = batch
        axons = run_block(network, block, others | params, inputs, below, propagate, apart=True)
        found = propagate(block.head, block.predict, _IDENTITY, params[block.head], axons[block.name])
        return block.judge(loss, found, targets)

    def parts(params: Params) -> dict[str, BlockPart]:
        found = {}
        for block in cut:
            own = {name: params[name] for name in (*block.layers, block.head)}
            found[block.name] = BlockPart(own, _with_propagate(functools.partial(of_block, block, params)))
        return found

    def received(params: Params, batch: Batch) -> dict[str, Batch]:
        inputs, targets = pair(batch, "targets")
        axons = record(network.apply)(params, inputs)[1]
        below: dict[str, Array] = {}
        found = {}
        for block in cut:
            found[block.name] = (inputs, dict(below)), targets
            below |= {name: axons[name] for name in block.layers}
        return found

    counts = {block.name: block.losses for block in cut}
    return LocalLosses(init, objective, apply, outputs, parts, received, counts)


def _with_propagate(run: Callable[..., Array]) -> Objective:
    def objective(params: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
        return run(params, batch, propagate)

    return objective
