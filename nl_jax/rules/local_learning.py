"""A network taught by local rules, as an estimator like any other."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.base import Array, Batch, Forward, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.checks import path_name, per_example, takes_propagate
from nl_jax.products import unfold
from nl_jax.propagation import Site, interpret
from nl_jax.rules.rule import Change, Rule


def local_learning(
    forward: Forward, rule: Rule | Mapping[str, Rule], *, objective: Objective | None = None
) -> GradientEstimator:
    """Every layer changes by a rule that sees this layer alone; no error travels between layers.

    `grads` are minus the rules' changes, so that any optimizer applies them: `optax.sgd(η)` makes W ← W + η ΔW.
    Of convolutions the inputs are patches, and every position of an image is one more example.

    Args:
      forward: `forward(params, inputs, propagate=feedforward)`, with `params` by layer as of `nl.network`.
      rule: one from `nl.rules` for all layers that have parameters, or a mapping {layer: rule}; layers that are not
        in it do not change. Layers learn at once, or one after another by one such estimator for each.
      objective: reported as `info.loss`, and used for nothing else.

    Returns:
      An estimator without randomness, with its rules' states by layer. A batch is the inputs, or a pair
      (inputs, targets): targets reach supervised rules alone, an array the last layer's, a mapping
      {layer: targets} those it names. Rules have no loss, and nothing for a line search to search by: without an
      objective `info.loss` is ‖Δ‖², the squared norm of all changes, 0 where the rules are at rest and infinite where
      they diverge. 2 evaluations, a forward pass and as much again for the changes; 3 with an objective.

    Raises:
      ValueError: if forward takes no `propagate` or a rule is not one; when run, for a layer that is not there, has
        several connections or no weight multiplied by its inputs, lacks the targets its rule needs, or is given a
        change that does not fit its parameters; each names the layer.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> from nl_jax import rules
    >>> net = nl.mlp([3, 1], activation=nl.activations.identity(), bias=False)
    >>> x = jax.random.normal(jax.random.key(0), [100, 3]) * jnp.array([[3.0, 1.0, 1.0]])
    >>> learner = nl.learner(local_learning(net.apply, rules.oja()), optax.sgd(0.02))
    >>> state = learner.init(jax.random.key(1), net.init(jax.random.key(2)))
    >>> state, _ = nl.fit(learner, jax.random.key(3), state, x, num_steps=200, progress=False)
    >>> bool(abs(state.params["output"]["weight"][0, 0]) > 0.99)  # the first eigenvector
    True
    """
    if not takes_propagate(forward):
        raise ValueError(
            f"local_learning needs to reach the layers of the network, but the forward function "
            f"{getattr(forward, '__name__', forward)!r} takes no argument `propagate`: write it as "
            "forward(params, x, propagate=feedforward) with one propagate call a layer (nl.mlp and nl.network do)"
        )
    for one in rule.values() if isinstance(rule, Mapping) else [rule]:
        if not isinstance(one, Rule):
            raise ValueError(
                f"rule must be made by nl.rules, such as nl.rules.oja(), or map layers to such; got {one!r}"
            )

    def by_layer(params: Params) -> Mapping[str, Rule]:
        rules = rule if isinstance(rule, Mapping) else {name: rule for name in params if jax.tree.leaves(params[name])}
        for name in rules:
            _require_weight(name, params)
        return rules

    def init(key: Key, params: Params) -> State:
        del key
        return {name: own.init(_flat(params[name])) for name, own in by_layer(params).items()}

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        inputs, targets = batch if isinstance(batch, tuple | list) else (batch, None)
        rules, shapes = by_layer(params), {}

        def layer(site: Site, given: None) -> tuple[Array, tuple[Params, Array, Array] | None]:
            axons = site.axons()
            shapes[site.name] = axons.shape
            return axons, (site.params, *_examples(site, axons)) if site.name in rules else None

        _, seen = interpret(forward, layer)(params, inputs)
        teachers = targets if isinstance(targets, Mapping) else {next(reversed(shapes), None): targets}
        grads, states = jax.tree.map(jnp.zeros_like, params), {}
        for name, own in rules.items():
            for looped in (layer for layer in shapes if layer.endswith(f"/{name}")):
                raise ValueError(
                    f"local_learning: layer {looped!r} is in a loop, whose steps would each change its parameters: it "
                    "teaches layers outside loops; for a loop over time see nl.e_prop and nl.rflo"
                )
            if name not in seen:
                raise ValueError(f"no layer is named {name!r}; the layers are {', '.join(shapes)}")
            its_params, pre, post = seen[name]
            teacher = _teacher(name, shapes[name], teachers.get(name)) if own.supervised else None
            flat = _flat(its_params)
            change, after = own.change(state[name], flat, pre, post, teacher)
            _require_fit(name, change, flat)
            states[name] = jax.tree.map(lambda old, new: new.astype(old.dtype), state[name], after)
            grads[name] |= {part: -_like(params[name][part], delta) for part, delta in change.items()}
        if objective is None:
            return grads, states, Info(optax.tree.norm(grads, squared=True), jnp.int32(2))
        return grads, states, Info(jnp.mean(per_example(objective(params, batch))), jnp.int32(3))

    return GradientEstimator(init, estimate)


def _require_weight(name: str, params: Params) -> None:
    if name not in params:
        raise ValueError(f"params have no entry for layer {name!r}; they have {', '.join(params)}")
    if not isinstance(params[name], Mapping) or not hasattr(params[name].get("weight"), "shape"):
        there = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params[name])]
        raise ValueError(
            f"layer {name!r} has parameters {', '.join(there) or 'none'}: a local rule changes a layer of one "
            "connection, with one weight; choose layers by a mapping {layer: rule}"
        )


def _flat(params: Params) -> Params:
    """The layer's parameters, its weight as [inputs, units]."""
    weight = params["weight"]
    return {**params, "weight": weight.reshape(-1, weight.shape[-1])}


def _require_fit(name: str, change: Change, params: Params) -> None:
    for part, delta in change.items():
        if part not in params:
            raise ValueError(f"the rule of layer {name!r} changes {part!r}; the layer's parts are {', '.join(params)}")
        if np.shape(delta) != np.shape(params[part]):
            raise ValueError(
                f"the rule of layer {name!r} changes {part!r} by an array of shape {np.shape(delta)}; "
                f"it must be of shape {np.shape(params[part])}, a weight's being (inputs, units)"
            )


def _like(weight: Array, change: Array) -> Array:
    return change.reshape(weight.shape).astype(weight.dtype)


def _examples(site: Site, axons: Array) -> tuple[Array, Array]:
    """What the layer's weight is multiplied with and what its units answer, position by position."""
    name = site.name
    if len(site.inputs) != 1:
        raise ValueError(f"layer {name!r} has {len(site.inputs)} inputs; a local rule changes a layer of one")
    try:
        pre = unfold(site.connection, site.params, *site.inputs)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"layer {name!r} does not multiply its weight once by its inputs, as `x @ weight` or with "
            f"nl.products.product: {error}"
        ) from error
    post = axons.reshape(-1, axons.shape[-1])
    if post.shape != (pre.shape[0], site.params["weight"].shape[-1]):
        raise ValueError(
            f"layer {name!r} has axons of shape {axons.shape} for {pre.shape[0]} products with "
            f"{site.params['weight'].shape[-1]} units: a local rule needs one axon for each"
        )
    return pre, post


def _teacher(name: str, shape: tuple[int, ...], targets: Any) -> Array:
    if np.shape(targets) != shape:
        given = "none" if targets is None else f"targets of shape {np.shape(targets)}"
        raise ValueError(
            f"layer {name!r} learns from targets of its axons' shape {shape}, got {given}: give the batch "
            "as (inputs, targets), classes as one-hot, or targets of lower layers as {layer: targets}"
        )
    return targets.reshape(-1, targets.shape[-1])
