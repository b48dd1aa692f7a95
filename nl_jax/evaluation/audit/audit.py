"""The locality audit: finds what can reach the update of each parameter."""

import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from nl_jax._core.dependence import EVERYTHING, NOTHING, Flow, Flows, Gate, sources_of_outputs
from nl_jax._core.paths import by_path
from nl_jax._core.require import takes
from nl_jax.base import Batch, GradientEstimator, Params, Program
from nl_jax.evaluation.audit.marking import LOSS, STAGES, marked, post, pre, stage
from nl_jax.evaluation.audit.report import COLUMNS, Audit, AuditedLeaf, Source
from nl_jax.evaluation.audit.timing import timing

Sites: TypeAlias = dict[str, Flows]
"""The flows that the program itself puts at each mark."""


def audit(
    factory: Callable[[Program], GradientEstimator],
    program: Program,
    params: Params,
    batch: Batch,
    *,
    inputs: Callable[[Batch], Any] | None = None,
    targets: Callable[[Batch], Any] | None = None,
    loop: str | None = None,
) -> Audit:
    """Finds what an estimator's updates can see by reading their jaxpr; nothing is run.

    Everything an estimator computes is a function of parameters, batch and key; rules differ in the paths by which
    information reaches an update. The audit stops tracing at the values that the program itself puts at a layer's
    inputs (*pre*) and at its own values (*post*: pre-activation and axons (activity)), and at the loss of each example.
    These count as sources. Everything else is traced further back: values that an estimator, not the program, brings
    into a layer (such as a target it is clamped to), values that flow back in a derivative, and what a state keeps of
    earlier steps.

    If the audit reports that a source does not reach an update, then changing that source alone (with pre, post and
    loss fixed) cannot change the update. `docs/audit.md` has the definitions and their limits.

    Args:
      factory: `factory(program) -> estimator`, such as `nl.backprop` or `functools.partial(nl.node_perturbation,
        num_samples=4)`; it gets the program with its layers marked.
      program: an objective or a forward function, whichever the factory takes. A program without `propagate` has no
        layers, and every leaf is separate.
      params: the program's parameters; only shapes and dtypes of arrays are used.
      batch: the estimator's batch; only shapes and dtypes of arrays are used.
      inputs: `inputs(batch) -> tree`, the program's second argument. The default is the batch, as for objectives; for a
        forward function use `lambda batch: batch[0]`.
      targets: `targets(batch) -> tree`, the part of the batch that is a target, possibly `()`; by default the second of
        a pair (inputs, targets). The rest is the input.
      loop: the name of the program's loop over time. If given, the audit also reports *when* updates get their
        information and whether memory grows with the number of steps (`Audit.timing`). No other axis of the batch may
        have that number as its size.

    Returns:
      An `Audit`; print it, or use its `verdict`, `verdicts` or `plot()`.

    Raises:
      ValueError: if the batch is not a pair and `targets` is not given, the factory is an estimator or its estimator
        never runs the program it was given, two parameters have the same path, or the program has no loop of this name.

    Warns:
      UserWarning: if the updates see the input but no layer of the program. The estimator then usually runs another
        program, such as a forward function that the factory closes over, and the verdict is that of a program without
        layers.

    >>> import functools, jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> at = objective, net.init(jax.random.key(0)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> audit(functools.partial(nl.node_perturbation, num_samples=4), *at).verdict
    'three-factor'
    >>> audit(nl.backprop, *at).verdicts["hidden1/weight"]
    'reads other axons, weight transport, sees the target'
    """
    takes(
        "factory", factory, 1,
        "hand in nl.backprop or functools.partial(nl.local_learning, rule=nl.rules.oja()), not the estimator",
    )  # fmt: skip
    leaves = list(by_path(params))
    of_params = [_one(_Leaf(leaf)) for leaf in leaves]
    of_batch = _batch_sources(batch, targets)
    layers: dict[str, None] = {}
    watched = marked(program, lambda layer: layers.setdefault(layer))

    alone = watched if inputs is None else lambda params, batch: watched(params, inputs(batch))
    try:
        own = _what_the_program_puts(alone, params, batch, [*of_params, *of_batch])
    except (TypeError, ValueError) as error:
        if inputs is not None:
            raise
        raise ValueError(
            f"program(params, batch) failed: {error}\nIf program is a forward function, say what its inputs are: "
            "nl.audit(…, inputs=lambda batch: batch[0])"
        ) from error
    runs: list[None] = []

    @functools.wraps(watched)
    def given(*arguments: Any, **settings: Any) -> Any:
        runs.append(None)
        return watched(*arguments, **settings)

    estimator = factory(given)
    updates = _updates(estimator, params, batch, of_params, of_batch, _seen_beyond(own))
    if not runs:
        raise ValueError(
            "factory returned an estimator that does not run the objective it was given: write "
            "functools.partial(nl.node_perturbation, num_samples=4), not lambda objective: estimator"
        )
    _warn_without_marks(updates, layers)
    users = {leaf: tuple(layer for layer in layers if _uses(own, layer, leaf)) for leaf in leaves}
    everything = [*map(_Leaf, leaves), *map(pre, layers), *map(post, layers), "input", "target", "noise", LOSS]
    rows = {
        leaf: _row(leaf, users, _spelled_out(flows, everything)) for leaf, flows in zip(leaves, updates, strict=True)
    }
    return Audit(rows, None if loop is None else timing(estimator, watched, params, batch, loop))


class _Leaf(NamedTuple):
    """A parameter as a source."""

    path: str


def _one(source: Any) -> Flows:
    return frozenset({Flow(source)})


def _batch_sources(batch: Batch, targets: Callable[[Batch], Any] | None) -> list[Flows]:
    if targets is None:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"batch is no pair (inputs, targets) but {type(batch).__name__}: say which part of it is a target, "
                "targets=lambda batch: batch['label'], or that none is, targets=lambda batch: ()"
            )
        targets = lambda batch: batch[1]
    leaves, tree = jax.tree.flatten(batch)
    tokens = [object() for _ in leaves]  # nothing can be computed with them
    remedy = "targets must return leaves of the batch as they are, such as targets=lambda batch: batch['label']"
    try:
        chosen = jax.tree.leaves(targets(jax.tree.unflatten(tree, tokens)))
    except TypeError as error:
        raise ValueError(f"{remedy}; {error}") from error
    if not all(any(one is token for token in tokens) for one in chosen):
        raise ValueError(f"{remedy}; got {chosen}")
    return [_one("target" if any(token is one for one in chosen) else "input") for token in tokens]


def _what_the_program_puts(program: Program, params: Params, batch: Batch, arguments: list[Flows]) -> Sites:
    """Finds the flows that arrive at each mark when the program runs by itself."""
    sites: Sites = {}

    def note(name: str, arriving: Flows) -> Flows:
        sites[name] = sites.get(name, NOTHING) | arriving
        return _seen_beyond(sites)(name, arriving)

    sources_of_outputs(jax.make_jaxpr(program)(params, batch), arguments, note)
    return sites


def _seen_beyond(own: Sites) -> Gate:
    """Replaces the program's own flows at a mark by the mark; other flows and the target pass through.

    The loss mark replaces all of its sources: the third factor is one number per example.
    """

    def gate(name: str, arriving: Flows) -> Flows:
        if name == LOSS:
            return _one(name)
        hidden = frozenset(flow for flow in own.get(name, NOTHING) if flow.source not in ("target", EVERYTHING))
        kind, layer = name.split(":", maxsplit=1)
        return _one(post(layer) if kind in STAGES else name) | (arriving - hidden)

    return gate


def _updates(
    estimator: GradientEstimator,
    params: Params,
    batch: Batch,
    of_params: list[Flows],
    of_batch: list[Flows],
    gate: Gate,
) -> list[Flows]:
    """Finds what reaches the gradient of each leaf, in this step or through the state from any earlier step."""
    key, of_key = jax.random.key(0), _one("noise")
    init, state = jax.make_jaxpr(estimator.init, return_shape=True)(key, params)
    estimate, shapes = jax.make_jaxpr(estimator.estimate, return_shape=True)(key, state, params, batch)
    of_state = sources_of_outputs(init, [of_key, *of_params], gate)
    while True:
        outputs = sources_of_outputs(estimate, [of_key, *of_state, *of_params, *of_batch], gate)
        grads, remembered, _ = jax.tree.unflatten(jax.tree.structure(shapes), outputs)
        arrived = [before | after for before, after in zip(of_state, jax.tree.leaves(remembered), strict=True)]
        if arrived == of_state:
            return jax.tree.leaves(grads)
        of_state = arrived


def _warn_without_marks(updates: Sequence[Flows], layers: Collection[str]) -> None:
    """Warns if updates that see the program's input see none of its layers."""
    sources = {flow.source for flows in updates for flow in flows}
    marks = {EVERYTHING, *map(pre, layers), *map(post, layers)}
    if layers and "input" in sources and not sources & marks:
        warnings.warn(
            "factory returned an estimator whose updates see the input but no layer of the program that it was given, "
            "so the audit may not tell what is their own: does it run another program? Then hand that one to the "
            "audit. For local rules it is the forward function: nl.audit(functools.partial(nl.local_learning, "
            "rule=nl.rules.oja()), forward, params, batch, inputs=lambda batch: batch[0])",
            stacklevel=3,
        )


def _uses(own: Sites, layer: str, leaf: str) -> bool:
    return any(flow.source == _Leaf(leaf) for which in STAGES for flow in own.get(stage(layer, which), NOTHING))


def _spelled_out(flows: Flows, everything: Sequence[Any]) -> Flows:
    opaque = [flow.through for flow in flows if flow.source == EVERYTHING]
    return frozenset(flow for flow in flows if flow.source != EVERYTHING) | {
        Flow(source, through) for source in everything for through in opaque
    }


def _row(leaf: str, users: dict[str, tuple[str, ...]], flows: Flows) -> AuditedLeaf:
    layers = users[leaf]
    places: dict[Any, str] = {
        _Leaf(other): "own layer" if {*layers} & {*users[other]} else "other weights" for other in users
    }
    places[_Leaf(leaf)] = "own weight"
    for layer in layers:
        places |= {pre(layer): "own pre", post(layer): "own post"}
    sources: dict[str, set[Source]] = {column: set() for column in COLUMNS}
    for source, through in flows:
        name = source.path if isinstance(source, _Leaf) else str(source)
        column = places.get(source, name if name in COLUMNS else "other axons")
        sources[column].add(Source(name.removeprefix("pre:").removeprefix("post:"), through))
    return AuditedLeaf(layers, {column: frozenset(found) for column, found in sources.items()})
