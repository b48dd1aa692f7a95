"""Checks the contract that every estimator must meet."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Batch, EstimateFn, EstimatorInitFn, Info, Key, Params, State
from nl_jax.evaluation.conformance.certificate import CheckResult
from nl_jax.evaluation.conformance.exact import mean_loss
from nl_jax.evaluation.conformance.subject import Subject, by_leaf, flat, keys, made, other_chunk, sampler
from nl_jax.propagation import feedforward


def two_keys() -> tuple[Key, Key]:
    """Returns two keys. They are not constants of this module: importing must start no backend of JAX."""
    return jax.random.key(3), jax.random.key(4)


def signatures(s: Subject) -> CheckResult:
    """Checks the signatures `init(key, params)` and `estimate(key, state, params, batch)`."""
    found = []
    for function, protocol in ((s.estimator.init, EstimatorInitFn), (s.estimator.estimate, EstimateFn)):
        expected = list(inspect.signature(protocol.__call__).parameters)[1:]
        has = list(inspect.signature(function).parameters)
        if has != expected:
            found.append(f"takes ({', '.join(has)}), must take ({', '.join(expected)})")
    return _row("signatures", found, "init(key, params), estimate(key, state, params, batch)")


def shapes(s: Subject) -> CheckResult:
    """Checks that gradients match the parameters and are finite, and that the state matches the previous one."""
    leaves = jax.tree_util.tree_leaves_with_path
    grads, state, _ = _once(s)
    found = []
    for what, ours, theirs in (("grads", grads, s.problem.params), ("state", state, s.state)):
        if [path for path, _ in leaves(ours)] != [path for path, _ in leaves(theirs)]:
            found.append(f"{what} is a tree {jax.tree.structure(ours)}, must be {jax.tree.structure(theirs)}")
        else:
            found += [
                f"{what}{jax.tree_util.keystr(path)} is {jax.typeof(a)}, must be {jax.typeof(b)}"
                for (path, a), b in zip(leaves(ours), jax.tree.leaves(theirs), strict=True)
                if (jnp.shape(a), jnp.result_type(a)) != (jnp.shape(b), jnp.result_type(b))
            ]
    if not all(np.all(np.isfinite(leaf)) for leaf in by_leaf(grads).values()):
        found.append("grads are not finite")
    return _row("shapes", found, "grads have the parameters' tree, shapes and dtypes, state that of the state before")


def info(s: Subject) -> CheckResult:
    """Checks the reported mean loss and number of evaluations."""
    _, _, info = _once(s)
    if not isinstance(info, Info):
        return _row("info", [f"is {type(info).__name__}, must be nl.Info(loss, evaluations)"], "")
    loss = mean_loss(s.problem)
    evaluations = jnp.asarray(info.evaluations)
    found = []
    if jnp.shape(info.loss) != () or abs(float(info.loss) - loss) > 0.1 * abs(loss):
        found.append(f"loss is {info.loss}, the mean loss {loss:.4g}")
    if evaluations.shape != () or evaluations.dtype != jnp.int32:
        found.append(f"evaluations is {jax.typeof(evaluations)}, must be an int32 scalar")
    elif s.claims.evaluations not in (None, int(evaluations)):
        found.append(f"evaluations is {int(evaluations)}, claimed were {s.claims.evaluations}")
    return _row(
        "info", found, f"loss {float(info.loss):.4g}, {evaluations} evaluations", evaluations=evaluations.tolist()
    )


def reproducible(s: Subject) -> CheckResult:
    """Checks that one key gives one result, when repeated and when mapped over keys."""
    first = _once(s)
    apart = {"again": _apart(_once(s), first), "mapped": _mapped(s)[0]}
    found = [
        f"{how}: relative difference {off:.1e}"
        for how, off in apart.items()
        if not off <= (0.0 if how == "again" else 10 * rounding())
    ]
    said = f"the same again; jit and vmap agree to {max(apart.values()):.1e}"
    return _row("reproducible", found, said, **apart)


def eager(s: Subject) -> CheckResult:
    """Checks that a new estimator without `jax.jit` gives the same result."""
    off = _apart(_run(s.factory, s.problem.objective, s, two_keys()[0]), _once(s))
    found = [f"made anew, eager: relative difference {off:.1e}"] * (not off <= 10 * rounding())
    return _row("eager", found, f"agrees with jit to {off:.1e}", difference=off)


def randomness(s: Subject) -> CheckResult:
    """Reports whether the result depends on the key."""
    said = "a key decides" if is_random(s) else "does not use its key"
    return CheckResult("randomness", "noted", said, {"random": is_random(s)})


def compilations(s: Subject) -> CheckResult:
    """Checks that a second call with another key and the next state is not traced again."""
    state = s.state
    for key in two_keys():
        _, state, _ = s.estimate(key, state, s.problem.params, s.problem.batch)
    count = len(s.traces)
    return _row("compilations", [f"traced {count} times for calls of one shape"] * (count != 1), "traced once")


def chunks(s: Subject) -> CheckResult:
    """Checks that the result does not depend on the size of chunks, if there is a setting `chunk`."""
    chunk = other_chunk(s.factory)
    if chunk is None:
        return CheckResult("chunks", "noted", "no setting named chunk")
    apart = _mapped(s)[1]
    found = [f"chunks of {chunk} differ from the default by {apart:.1e}"] * (not apart <= 10 * rounding())
    return _row("chunks", found, f"chunks of {chunk} agree with the default to {apart:.1e}", difference=apart)


def _mapped(s: Subject) -> tuple[float, float]:
    """Measures the differences due to mapping over keys and to chunks; one program tests both unless they differ."""
    one = flat(s.estimate(keys(s.num_keys)[0], s.state, s.problem.params, s.problem.batch)[0])
    both = distance(s.estimates()[0], one)
    if both <= 10 * rounding() or other_chunk(s.factory) is None:
        return both, both
    alone = sampler(made(s.factory, s.problem.objective), s.problem)(keys(s.num_keys), s.state)[0]
    return distance(alone, one), distance(s.estimates()[0], alone)


def bad_input(s: Subject) -> CheckResult:
    """Checks that averaged losses and raw keys raise a ValueError."""

    def averaged(params: Params, batch: Batch, propagate: Any = feedforward) -> Array:
        return jnp.mean(s.problem.objective(params, batch, propagate=propagate))

    found = []
    if not refuses(lambda: _traced(s, averaged, two_keys()[0])):
        found.append(
            "takes an objective that averages over the batch: check its losses, "
            "nl.require.per_example(objective(params, batch))"
        )
    if is_random(s) and not refuses(lambda: _traced(s, s.problem.objective, jnp.zeros(2, jnp.uint32))):
        found.append("takes a raw key: check it, nl.require.typed_key(key)")
    return _row("bad input", found, "averaged losses and raw keys are a ValueError")


def is_random(s: Subject) -> bool:
    """Whether keys give different results; tries ten, because some may give the same draw."""
    at = s.state, s.problem.params, s.problem.batch
    one, *others = (s.estimate(key, *at)[0] for key in jax.random.split(two_keys()[0], 10))
    return any(distance(other, one) > rounding() for other in others)


def refuses(run: Callable[[], Any]) -> bool:
    """Whether running it raises a ValueError; any other error propagates."""
    try:
        run()
    except ValueError:
        return True
    return False


def rounding(dtype: Any = None) -> float:
    """The relative difference allowed for reordered arithmetic: √ε of the dtype, or of the default dtype."""
    return float(jnp.finfo(jnp.result_type(float) if dtype is None else dtype).eps) ** 0.5


def distance(a: Any, b: Any) -> float:
    """Computes ‖a − b‖/‖b‖ of two trees; infinite if only b is 0; NaN if they contain NaN."""
    ours, theirs = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (a, b))
    apart = sum(float(np.sum(np.square(x - y))) for x, y in zip(ours, theirs, strict=True))
    scale = sum(float(np.sum(np.square(y))) for y in theirs)
    return 0.0 if apart == 0 else (apart / scale) ** 0.5 if scale != 0 else np.inf


def _apart(ours: tuple[Params, State, Info], theirs: tuple[Params, State, Info]) -> float:
    """The largest of the separate relative distances of gradients, states and infos."""
    return max(distance(a, b) for a, b in zip(ours, theirs, strict=True))


def _once(s: Subject) -> tuple[Params, Any, Info]:
    return s.estimate(two_keys()[0], s.state, s.problem.params, s.problem.batch)


def _run(factory: Any, objective: Any, s: Subject, key: Array) -> tuple[Params, State, Info]:
    """Makes a new estimator and runs it eagerly."""
    estimator = made(factory, objective)
    return estimator.estimate(
        key, estimator.init(jax.random.key(0), s.problem.params), s.problem.params, s.problem.batch
    )


def _traced(s: Subject, objective: Any, key: Array) -> None:
    """Traces `_run` without running it; bad input must raise during tracing."""
    jax.eval_shape(lambda: _run(s.factory, objective, s, key))


def _row(check: str, found: list[str], said: str, **figures: Any) -> CheckResult:
    return CheckResult(check, "failed" if found else "passed", "; ".join(found) or said, figures)
