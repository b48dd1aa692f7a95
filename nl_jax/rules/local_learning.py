"""An estimator that trains a network by local rules."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax._core.numerics import widened
from nl_jax._core.require import per_example, takes_propagate
from nl_jax.base import Array, Batch, Forward, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.propagation import Site, interpret
from nl_jax.propagation.interpretation import SEPARATOR
from nl_jax.rules.rule import Rule
from nl_jax.rules.stacked import Stacked, examples


def local_learning(
    forward: Forward, rule: Rule | Mapping[str, Rule], *, objective: Objective | None = None
) -> GradientEstimator:
    """Trains each layer by a rule that sees only that layer; no error travels between layers.

    `grads` are minus the rules' changes, so any optimizer can apply them: `optax.sgd(η)` makes W ← W + η ΔW. A rule
    treats several connections into a layer, including recurrent ones, as one connection whose inputs are those of all
    sources concatenated. In convolutions the inputs are patches, and every position of an image counts as an example.
    In a loop over time every step counts as an example. In a loop over depth with stacked parameters, every step is a
    separate layer.

    Args:
      forward: `forward(params, inputs, propagate=feedforward)`, with `params` by layer as in `nl.network`; the layer
        "hidden" of a loop "time" has `params["time"]["hidden"]` or `params["hidden"]`.
      rule: one rule from `nl.rules` for all layers that have parameters, or a mapping {layer: rule} with the names used
        in `params`; layers without an entry do not change. Layers learn simultaneously. To train them one after
        another, use one such estimator per layer.
      objective: only reported, as `info.loss`.

    Returns:
      An estimator without randomness, whose state holds the rules' states by layer. A batch is the inputs, or a pair
      (inputs, targets). Targets reach only supervised rules: an array goes to the last layer, a mapping
      {layer: targets} to the layers it names. Rules have no loss, so line searches are not possible. Without an
      objective `info.loss` is ‖Δ‖², the squared norm of all changes; it is 0 at the rules' fixed points and infinite
      if they diverge. The cost is 2 evaluations, a forward pass and as much again for the changes; 3 with an
      objective. In a loop the inputs and axons (activity) of all steps are stored.

    Raises:
      ValueError: if forward takes no `propagate` or a rule is not one; when run, if forward is an objective, if the
        batch has no example or is of more than a pair, or for a layer that does not exist, has no weight or one that is
        not multiplied once by inputs, lacks the targets its rule needs, gets a change that does not fit its parameters,
        or is stacked over depth with a rule that has a state. The message names the layer.

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
        if isinstance(rule, Mapping):
            return rule
        if not isinstance(params, Mapping):
            raise ValueError(
                f"params must be a dict with an entry for each layer, such as those of nl.network, got a "
                f"{type(params).__name__}"
            )
        return {name: rule for name in params if jax.tree.leaves(params[name])}

    def init(key: Key, params: Params) -> State:
        del key
        own = {name: _own(name, params) for name in by_layer(params)}
        return {name: one.init(Stacked(name, own[name]).flat(own[name])) for name, one in by_layer(params).items()}

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        inputs, targets = _divided(batch)
        rules, met = by_layer(params), dict[str, _Met]()

        def layer(site: Site, given: None) -> tuple[Array, tuple[Array, Array] | None]:
            axons = site.axons()
            name = next((one for one in _names(site.name) if one in rules), None)
            met[site.name] = _Met(name, axons.shape, site.params)
            return axons, None if name is None else examples(site, axons)

        try:
            _, seen = interpret(forward, layer)(params, inputs)
        except Exception as error:  # whatever it raises that is handed inputs for a batch
            _require_forward(forward, params, batch, error)
            raise
        teachers = targets if isinstance(targets, Mapping) else {next(reversed(met), None): targets}
        grads, states = jax.tree.map(jnp.zeros_like, params), {}
        for name, one in rules.items():
            site = _site(name, met)
            told, (pre, post) = teachers.get(site, teachers.get(name)), seen[site]
            change, states[name] = _applied(name, one, state[name], _own(name, params), met[site], pre, post, told)
            grads = _with(grads, name.split(SEPARATOR), jax.tree.map(jnp.negative, change))
        if objective is None:
            return grads, states, Info(optax.tree.norm(widened(grads), squared=True), jnp.int32(2))
        return grads, states, Info(jnp.mean(per_example(objective(params, batch))), jnp.int32(3))

    return GradientEstimator(init, estimate)


def _divided(batch: Batch) -> tuple[Any, Any]:
    """Returns the batch's inputs and targets; the targets are None if it has none."""
    if not isinstance(batch, tuple | list):
        return batch, None
    if len(batch) != 2:
        raise ValueError(
            f"batch must be the inputs or a pair (inputs, targets), got {len(batch)} parts: give several inputs as a "
            "dict, or as the first of a pair"
        )
    return batch[0], batch[1]


def _require_forward(forward: Forward, params: Params, batch: Batch, error: Exception) -> None:
    """Raises a ValueError if the forward function, which failed on the inputs, is an objective of the whole batch."""
    if not isinstance(batch, tuple | list) or not jax.tree.leaves(batch):
        return
    try:
        losses = jax.eval_shape(forward, params, batch)
        examples = jnp.shape(jax.tree.leaves(batch)[0])[:1]
        if losses.shape != examples or not jnp.issubdtype(losses.dtype, jnp.floating):
            return
    except Exception:  # it fails on the batch too: the first error is the one to see
        return
    raise ValueError(
        f"local_learning takes a forward function, but {getattr(forward, '__name__', forward)!r} is an objective: it "
        f"fails on the inputs and returns one loss for each of the {examples[0]} examples of the whole batch. Hand in "
        "the forward function that the objective judges, such as network.apply; the objective itself is only reported, "
        "local_learning(network.apply, rule, objective=objective)"
    ) from error


class _Met(NamedTuple):
    """A layer of the program.

    Attributes:
      name: the name of the parameters that its rule changes, None if it has no rule.
      shape: the shape of its axons in one step.
      params: the parameters it was run with.
    """

    name: str | None
    shape: tuple[int, ...]
    params: Params


def _names(site: str) -> list[str]:
    """Returns the possible names of a layer's parameters, such as "time/hidden" and "hidden"."""
    parts = site.split(SEPARATOR)
    return [SEPARATOR.join(parts[i:]) for i in range(len(parts))]


def _own(name: str, params: Params) -> Params:
    """Returns the layer's parameters."""
    found = params
    for part in name.split(SEPARATOR):
        if not isinstance(found, Mapping) or part not in found:
            there = ", ".join(found) if isinstance(found, Mapping) else "no layers"
            raise ValueError(f"params have no entry for layer {name!r}; they have {there}")
        found = found[part]
    return found


def _with(params: Params, path: list[str], own: Params) -> Params:
    """Returns the tree with a layer's part replaced."""
    return {**params, path[0]: _with(params[path[0]], path[1:], own)} if path else own


def _site(name: str, met: Mapping[str, _Met]) -> str:
    """Returns the name in the program of the layer that has these parameters."""
    sites = [site for site, found in met.items() if found.name == name]
    if not sites:
        raise ValueError(f"no layer is named {name!r}; the layers are {', '.join(met)}: give a mapping {{layer: rule}}")
    if len(sites) > 1:
        raise ValueError(f"the parameters of {name!r} could be those of {' and '.join(sites)}: give layers other names")
    return sites[0]


def _require_depth(name: str, steps: tuple[int, ...], own: Params, used: Params, state: State) -> None:
    """Raises a ValueError unless the parameters are those of all steps of one loop, stacked."""
    stacked = jax.tree.map(lambda leaf: (*steps, *jnp.shape(leaf)), used)
    if len(steps) != 1 or stacked != jax.tree.map(jnp.shape, own):
        raise ValueError(
            f"layer {name!r} gets parameters whose shapes differ from those in params: pass them to it unchanged, "
            "or as the slices of one loop over depth"
        )
    if jax.tree.leaves(state):
        raise ValueError(
            f"layer {name!r} is stacked over depth, and its rule keeps a state, of which there is one for all steps: "
            "use a rule without state, or write the layers out"
        )


def _applied(
    name: str, rule: Rule, state: State, own: Params, met: _Met, pre: Array, post: Array, targets: Any
) -> tuple[Params, State]:
    """Applies a layer's rule; returns its change, a tree like its parameters, and the rule's next state.

    Args:
      name, rule, state, own: the layer's name in the parameters, its rule, the rule's state and its parameters.
      met: the layer, as it was run.
      pre, post: its inputs and axons, [examples, units] after the axes of loops.
      targets: those of a supervised rule.
    """
    if post.size == 0:
        raise ValueError(f"batch must have at least one example, but layer {name!r} has inputs {pre.shape}")
    teacher = None
    if rule.supervised:
        teacher = _teacher(name, (*post.shape[:-2], *met.shape), targets).reshape(post.shape)
    learn = functools.partial(_learned, rule, Stacked(name, met.params))
    if jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, met.params):  # every step is one more example
        flat = lambda x: x.reshape(-1, x.shape[-1])
        change, after = learn(state, own, *jax.tree.map(flat, (pre, post, teacher)))
    else:  # every step has its own parameters
        _require_depth(name, post.shape[:-2], own, met.params, state)
        axes = None, 0, 0, 0, None if teacher is None else 0
        change, after = jax.vmap(learn, in_axes=axes)(state, own, pre, post, teacher)
    return change, jax.tree.map(lambda old, new: new.astype(old.dtype), state, after)


def _learned(
    rule: Rule, parts: Stacked, state: State, own: Params, pre: Array, post: Array, teacher: Array | None
) -> tuple[Params, State]:
    """Returns a layer's change, a tree like its parameters, and its rule's next state."""
    change, after = rule.change(state, parts.flat(own), pre, post, teacher)
    return parts.parted(own, change), after


def _teacher(name: str, shape: tuple[int, ...], targets: Any) -> Array:
    if np.shape(targets) != shape:
        given = "none" if targets is None else f"targets of shape {np.shape(targets)}"
        raise ValueError(
            f"layer {name!r} learns from targets of its axons' shape {shape}, got {given}: give the batch "
            "as (inputs, targets), classes as one-hot, or targets of lower layers as {layer: targets}"
        )
    return targets
