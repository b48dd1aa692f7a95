"""Adapts the atlas's tasks for methods with objectives of their own: local rules, forward-forward, local losses."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nl_jax as nl
from experiments.atlas.tasks import Batch, Task, wrong_answers
from nl_jax.base import Array, Params

OUTPUT = "output"
"""Name of the output layer in every network of the atlas."""


def hidden_layers(task: Task) -> list[str]:
    """Returns the paths of the learning layers, without the output layer."""
    found: list[str] = []

    def visit(params: Any, path: tuple[str, ...]) -> None:
        parts = {name: part for name, part in params.items() if isinstance(part, Mapping)}
        if len(parts) < len(params):
            found.append("/".join(path))
        for name, part in parts.items():
            visit(part, (*path, name))

    visit(jax.eval_shape(task.init, jax.random.key(0)), ())
    return [path for path in found if path != OUTPUT]


def rules_of(task: Task, hidden: nl.rules.Rule | None) -> dict[str, nl.rules.Rule]:
    """Returns a rule for each layer: `hidden` for hidden layers (None leaves them random), delta for the outputs.

    Raises:
      ValueError: if there is no hidden layer.
    """
    layers = hidden_layers(task)
    if not layers:
        raise ValueError("a rule for hidden layers needs one: the network has only its output layer")
    return {**({} if hidden is None else dict.fromkeys(layers, hidden)), OUTPUT: nl.rules.delta()}


def by_rules(task: Task) -> Task:
    """Returns the task for `nl.local_learning`: its program is the forward function, its targets are output values."""
    outputs = jax.eval_shape(task.apply, jax.eval_shape(task.init, jax.random.key(0)), task.example[0])
    inputs, targets = task.train
    if np.issubdtype(targets.dtype, np.integer):
        targets = np.eye(outputs.shape[-1], dtype=np.float32)[targets]
    return task._replace(objective=task.apply, train=(inputs, targets), audited=lambda batch: batch[0])


def forward_forward(task: Task) -> Task:
    """Returns the task for the forward-forward algorithm (Hinton 2022): ReLU layers, one extra input per class.

    Raises:
      ValueError: if the task's network is not dense, or has no hidden layer.
    """
    if task.widths is None or len(task.widths) < 3:
        raise ValueError("forward-forward needs a dense network with hidden layers, to give it labels as inputs")
    inputs, *hidden, classes = task.widths
    relu, dense = nl.activations.relu(), nl.connections.dense()
    layers = [nl.Layer(f"hidden{i}", width, dense, relu) for i, width in enumerate(hidden, 1)]
    network = nl.network(nl.Layer("input", classes + inputs), *layers)
    predict = nl.objectives.predict(network.apply, classes)

    def with_room(inputs: Array) -> Array:
        return jnp.pad(inputs, ((0, 0), (classes, 0)))

    def error(params: Params, batch: Batch) -> Array:
        finite = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
        return jnp.where(finite, jnp.mean(predict(params, with_room(batch[0])) != batch[1]), jnp.nan)

    return task._replace(
        init=network.init, apply=network.apply, objective=nl.objectives.forward_forward(network.apply), error=error,
        train=(with_room(task.train[0]), task.train[1]),
        audited=lambda batch: (batch[0], jnp.ones(batch[1].shape, bool)),
    )  # fmt: skip


def local_losses(task: Task) -> Task:
    """Returns the task with a loss for each hidden layer, predicted by a linear head of its own (Ren et al. 2022).

    The heads replace the network's output layer; the highest one answers.

    Raises:
      ValueError: if the task has no classes, or its network no hierarchy of hidden layers.
    """
    if task.network is None or len(task.network.layers) < 3 or not np.issubdtype(task.train[1].dtype, np.integer):
        raise ValueError("local losses need class labels and a hierarchy of layers, at least one of them hidden")
    classes = task.network.shapes[OUTPUT][0]
    trunk = nl.network(*task.network.layers[:-1])
    local = nl.local_losses(trunk, nl.losses.cross_entropy, classes)
    return task._replace(
        init=local.init, apply=local.apply, objective=local.objective, error=wrong_answers(local.apply)
    )
