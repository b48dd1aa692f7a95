"""Joins all connections into a layer to one weight for local rules.

Several connections into a layer, ν_j = Σ_s x^s W^s_j + b_j, equal one connection from the concatenated axons
(activity) of their sources. A rule's equations, written for one weight, therefore hold for any number of connections,
including recurrent ones.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.paths import path_name
from nl_jax._core.products import unfold
from nl_jax.base import DECORRELATION, Array, Params
from nl_jax.propagation import Site
from nl_jax.rules.rule import Change

LATERAL = "lateral"
"""Connections among a layer's own units. They are solved within the layer and are not weights of any input."""

APART = (LATERAL, DECORRELATION)
"""Parts that have two axes but are not weights."""


class Stacked:
    """The parts of one layer's parameters.

    Args:
      name: the layer's name, for messages.
      params: its parameters, one weight or a tree of several. A weight is an array of two axes or more with the units
        on the last axis. Other parts are named by the last element of their path, such as "bias".

    Raises:
      ValueError: if there is no weight, or weights differ in their number of units.
    """

    def __init__(self, name: str, params: Params) -> None:
        self.name = name
        self.paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        leaves, self.tree = jax.tree.flatten(params)
        self.shapes = [np.shape(leaf) for leaf in leaves]
        self.parts = [path_name(path[-1:]) if path else "weight" for path in self.paths]
        self.weights = [
            i
            for i, (part, s) in enumerate(zip(self.parts, self.shapes, strict=True))
            if len(s) > 1 and part not in APART
        ]
        there = ", ".join(map(path_name, self.paths)) or "none"
        if not self.weights:
            raise ValueError(
                f"layer {name!r} has parameters {there}: a local rule changes weights of two axes or more, and what "
                "stands beside them; choose layers by a mapping {layer: rule}"
            )
        if len({self.shapes[i][-1] for i in self.weights}) > 1:
            shapes = ", ".join(f"{path_name(self.paths[i])} {self.shapes[i]}" for i in self.weights)
            raise ValueError(f"layer {name!r} has weights that differ in their last axis, that of the units: {shapes}")

    def flat(self, params: Params) -> Params:
        """Returns `{"weight": [inputs, units], …}`; parts with the same name, such as several biases, are summed.

        Raises:
          ValueError: if parts with the same name have different shapes.
        """
        leaves = jax.tree.leaves(params)
        found = {"weight": jnp.concatenate([leaves[i].reshape(-1, leaves[i].shape[-1]) for i in self.weights])}
        for name, places in self.others().items():
            if len({self.shapes[i] for i in places}) > 1:
                shapes = ", ".join(f"{path_name(self.paths[i])} {self.shapes[i]}" for i in places)
                raise ValueError(f"layer {self.name!r} has parts of one name and several shapes: {shapes}")
            found[name] = sum((leaves[i] for i in places[1:]), start=leaves[places[0]])
        return found

    def others(self) -> dict[str, list[int]]:
        """Returns the indices of the parts that are not weights, by name."""
        found: dict[str, list[int]] = {}
        for i, part in enumerate(self.parts):
            if i not in self.weights:
                found.setdefault(part, []).append(i)
        return found

    def parted(self, params: Params, change: Change) -> Params:
        """Converts a change of `flat` to a change of the parameters; summed parts each get the whole change.

        Raises:
          ValueError: if the change does not fit.
        """
        flat = self.flat(params)
        for part, delta in change.items():
            if part not in flat:
                raise ValueError(
                    f"the rule of layer {self.name!r} changes {part!r}; the layer's parts are {', '.join(sorted(flat))}"
                )
            if np.shape(delta) != np.shape(flat[part]):
                raise ValueError(
                    f"the rule of layer {self.name!r} changes {part!r} by an array of shape {np.shape(delta)}; "
                    f"it must be of shape {np.shape(flat[part])}, a weight's being (inputs, units)"
                )
        leaves = [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(params)]
        if "weight" in change:
            begins = np.cumsum([0, *(int(np.prod(self.shapes[i][:-1])) for i in self.weights)])
            for i, first, end in zip(self.weights, begins, begins[1:], strict=False):
                leaves[i] = change["weight"][first:end].reshape(self.shapes[i]).astype(leaves[i].dtype)
        for name, places in self.others().items():
            for i in places:
                leaves[i] = change.get(name, leaves[i]).astype(leaves[i].dtype)
        return jax.tree.unflatten(self.tree, leaves)


def examples(site: Site, axons: Array) -> tuple[Array, Array]:
    """Returns the concatenated inputs of a layer's weights and its units' axons, position by position.

    Returns:
      pre [examples, inputs] and post [examples, units], where every position of an image counts as an example.

    Raises:
      ValueError: if a weight is not multiplied exactly once, or the numbers of axons and products differ.
    """
    parts = Stacked(site.name, site.params)
    try:
        products = unfold(site.connection, site.params, *site.inputs, which=parts.weights)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"layer {site.name!r} does not multiply each of its weights once by its inputs, as `x @ weight` or with "
            f"nl.products.product: {error}"
        ) from error
    units = parts.shapes[parts.weights[0]][-1]
    post = axons.reshape(-1, axons.shape[-1])
    for i, pre in zip(parts.weights, products, strict=True):
        if post.shape != (pre.shape[0], units):
            raise ValueError(
                f"layer {site.name!r} has axons of shape {axons.shape} for {pre.shape[0]} products of "
                f"{path_name(parts.paths[i]) or 'its weight'} with {units} units: a local rule needs one axon for each"
            )
    return jnp.concatenate(products, axis=1), post
