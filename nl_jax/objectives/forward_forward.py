"""The forward-forward algorithm: a separate objective for every layer (Hinton 2022)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import as_floating, floating_dtype, widened
from nl_jax._core.require import layered, positive_integer, positive_number
from nl_jax.base import ActivationFn, Array, Batch, Connection, Forward, Key, Objective, Params, Propagate
from nl_jax.objectives.judged import pair
from nl_jax.propagation import feedforward


def goodness(forward: Forward) -> Callable[..., dict[str, Array]]:
    """Returns a function for each layer's goodness: the strength of its response (Hinton 2022 §2).

        g^l = mean_i (x_i^l)²,   x^l = f(W x̂^{l−1} + b),   x̂ = x / root mean square of x

    A layer receives only the direction of the axons (activity) below; from their length it could read the goodness of
    the layer below. Derivatives stop between layers, so no credit passes from one layer to another. Hinton sums over
    units; the mean does not depend on the width.

    Args:
      forward: `forward(params, inputs, propagate=feedforward)`; its outputs are not used.

    Returns:
      `goodnesses(params, inputs, propagate=feedforward) -> {layer: [batch]}`, for the layers that have parameters.

    Raises:
      ValueError: if `forward` takes no `propagate`.
    """
    layered("goodness", forward)

    def goodnesses(params: Params, inputs: Array, propagate: Propagate = feedforward) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def on_its_own(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            alone = (_direction(jax.lax.stop_gradient(x)) for x in inputs)
            axons = propagate(name, connection, activation, params, *alone)
            if jax.tree.leaves(params):
                found[name] = _mean_square(axons)
            return axons

        forward(params, inputs, propagate=on_its_own)
        return found

    return goodnesses


def forward_forward(forward: Forward, *, threshold: float = 1.0) -> Objective:
    """Trains every layer to tell positive from negative inputs by its goodness (Hinton 2022 §2).

        E = Σ_l −log σ(± (g^l − θ)),   + for positive inputs, − for negative ones

    Derivatives stop between layers: ∂E/∂W^l is that of layer l's own term, although all layers learn at once. This is
    not the gradient of E as a function of all parameters. Use an estimator that differentiates: `nl.backprop`, which
    here carries no credit between layers, or `nl.forward_gradient`. Perturbation only evaluates, so it also measures
    the effect of lower layers on the goodness of higher ones.

    Args:
      forward: as for `goodness`.
      threshold: θ, above 0, in units of a squared axon.

    Returns:
      `objective(params, (inputs, positive), propagate=feedforward) -> losses`, shape [batch], where `positive` is
      True or False for each example, as made by `contrast`.

    Raises:
      ValueError: if `forward` takes no `propagate` or the threshold is not as described; when called, if the
        batch is not such a pair.
    """
    layered("forward_forward", forward)
    threshold = positive_number("threshold", threshold)
    goodnesses = goodness(forward)

    def objective(params: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
        inputs, positive = pair(batch, "positive")
        if positive.dtype != jnp.bool_ or positive.shape != inputs.shape[:1]:
            raise ValueError(
                f"positive must be one truth value per example, bool of shape {inputs.shape[:1]}; "
                f"got {positive.dtype}{list(positive.shape)}"
            )
        excess = jnp.stack(list(goodnesses(params, inputs, propagate=propagate).values())) - threshold
        return jnp.sum(jax.nn.softplus(jnp.where(positive[None], -excess, excess)), axis=0)

    return objective


def overlay(inputs: Array, labels: Array, num_classes: int) -> Array:
    """Replaces the inputs' first `num_classes` features by the label, as a one-hot vector (Hinton 2022 §3.3).

    Args:
      inputs: shape [batch, features], at least as many features as classes; integers become floats.
      labels: integers of shape [batch] in 0 … num_classes − 1; a label outside gives NaN in the place of its vector.
      num_classes: at least 1.

    Raises:
      ValueError: if the inputs have too few features for the label.

    >>> overlay(2 * jnp.ones([1, 4]), jnp.array([1]), 3)
    Array([[0., 1., 0., 2.]], dtype=float32)
    """
    inputs, num_classes = jnp.asarray(inputs), positive_integer("num_classes", num_classes)
    if inputs.ndim != 2 or inputs.shape[1] < num_classes:
        raise ValueError(
            f"inputs must be of shape [batch, features], {num_classes} features at least; got {inputs.shape}"
        )
    inputs, labels = as_floating(inputs), jnp.asarray(labels).astype(jnp.int32)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=inputs.dtype)
    return inputs.at[:, :num_classes].set(jnp.where(_known(labels, num_classes)[:, None], one_hot, jnp.nan))


def contrast(num_classes: int) -> Callable[[Key, Batch], tuple[Array, Array]]:
    """Returns a function that makes positive inputs, with their label, and negative ones, with a wrong label.

    Labels are overlaid on the inputs, and there are as many negative as positive inputs (Hinton 2022 §3.3).

    Args:
      num_classes: at least 2.

    Returns:
      `(key, (inputs, labels)) -> (inputs, positive)`, with twice the examples, for `nl.augment_batches`. The positive
      inputs come first. Wrong labels are equally likely, and drawn again for each key. A label out of range gives NaN
      in both, as in `overlay`.

    Raises:
      ValueError: if `num_classes` is not as described.
    """
    if positive_integer("num_classes", num_classes) < 2:
        raise ValueError("num_classes must be at least 2: with a single class no label is wrong")

    def contrasted(key: Key, batch: Batch) -> tuple[Array, Array]:
        inputs, labels = pair(batch, "labels")
        labels = labels.astype(jnp.int32)  # in int8, label + shift would overflow
        shifted = (labels + jax.random.randint(key, labels.shape, 1, num_classes)) % num_classes
        wrong = jnp.where(_known(labels, num_classes), shifted, labels)
        both = [overlay(inputs, chosen, num_classes) for chosen in (labels, wrong)]
        return jnp.concatenate(both), jnp.repeat(jnp.array([True, False]), len(labels))

    return contrasted


def predict(forward: Forward, num_classes: int) -> Callable[[Params, Array], Array]:
    """Predicts the label that, overlaid on an input, gives the greatest goodness summed over layers (Hinton 2022 §3.3).

    Args:
      forward: as for `goodness`.
      num_classes: at least 1.

    Returns:
      `(params, inputs) -> labels`, int32 of shape [batch], by `num_classes` forward passes.
    """
    goodnesses = goodness(forward)

    def predicted(params: Params, inputs: Array) -> Array:
        def total(label: Array) -> Array:
            labels = jnp.full(inputs.shape[0], label)
            found = goodnesses(params, overlay(inputs, labels, num_classes))
            return jnp.sum(jnp.stack(list(found.values())), axis=0)

        return jnp.argmax(jax.lax.map(total, jnp.arange(num_classes)), axis=0).astype(jnp.int32)

    return predicted


def _known(labels: Array, num_classes: int) -> Array:
    return (labels >= 0) & (labels < num_classes)


def _mean_square(axons: Array) -> Array:
    """Computes mean_i (x_i)² per example in float32 at least: in half precision a square of 300 is infinite."""
    (x,) = widened([axons])
    return jnp.mean(x**2, axis=tuple(range(1, x.ndim)))


def _direction(axons: Array) -> Array:
    """Divides x by its root mean square; an x of 0 stays 0."""
    (x,) = widened([axons])
    size = jnp.sqrt(_mean_square(x)).reshape(-1, *[1] * (x.ndim - 1))
    return (x / jnp.where(size > 0, size, 1)).astype(floating_dtype(axons.dtype))
