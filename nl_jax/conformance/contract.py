"""Checks of the contract that every estimator keeps."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Batch, EstimateFn, EstimatorInitFn, Info, Params, State
from nl_jax.conformance.certificate import Row
from nl_jax.conformance.subject import Subject, flat, keys, made, other_chunk, sampler
from nl_jax.propagation import feedforward

KEYS = jax.random.key(3), jax.random.key(4)


def signatures(s: Subject) -> Row:
    """`init(key, params)`, `estimate(key, state, params, batch)`, so that all are called alike."""
    found = []
    for function, protocol in ((s.estimator.init, EstimatorInitFn), (s.estimator.estimate, EstimateFn)):
        expected = list(inspect.signature(protocol.__call__).parameters)[1:]
        has = list(inspect.signature(function).parameters)
        if has != expected:
            found.append(f"takes ({', '.join(has)}), must take ({', '.join(expected)})")
    return _row("signatures", found, "init(key, params), estimate(key, state, params, batch)")


def shapes(s: Subject) -> Row:
    """Gradients like the parameters, state like the state before; all finite."""
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
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads)):
        found.append("grads are not finite")
    return _row("shapes", found, "grads have the parameters' tree, shapes and dtypes, state that of the state before")


def info(s: Subject) -> Row:
    """The mean loss, and what the estimate cost."""
    _, _, info = _once(s)
    if not isinstance(info, Info):
        return _row("info", [f"is {type(info).__name__}, must be nl.Info(loss, evaluations)"], "")
    loss = float(jnp.mean(s.problem.objective(s.problem.params, s.problem.batch)))
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


def reproducible(s: Subject) -> Row:
    """One key, one result: again, and mapped over keys."""
    first = _once(s)
    apart = {"again": _apart(_once(s), first), "mapped": _mapped(s)[0]}
    found = [
        f"{how}: relative difference {off:.1e}"
        for how, off in apart.items()
        if not off <= (0.0 if how == "again" else 10 * rounding())
    ]
    said = f"the same again; jit and vmap agree to {max(apart.values()):.1e}"
    return _row("reproducible", found, said, **apart)


def eager(s: Subject) -> Row:
    """Without `jax.jit`, and made anew: the same result."""
    off = _apart(_run(s.factory, s.problem.objective, s, KEYS[0]), _once(s))
    found = [f"made anew, eager: relative difference {off:.1e}"] * (not off <= 10 * rounding())
    return _row("eager", found, f"agrees with jit to {off:.1e}", difference=off)


def randomness(s: Subject) -> Row:
    """Whether its key decides anything."""
    said = "a key decides" if is_random(s) else "does not use its key"
    return Row("randomness", "noted", said, {"random": is_random(s)})


def compilations(s: Subject) -> Row:
    """A second call with another key and the next state is not traced again."""
    state = s.state
    for key in KEYS:
        _, state, _ = s.estimate(key, state, s.problem.params, s.problem.batch)
    count = len(s.traces)
    return _row("compilations", [f"traced {count} times for calls of one shape"] * (count != 1), "traced once")


def chunks(s: Subject) -> Row:
    """In whatever chunks samples are taken, where there is a setting `chunk`: the same result."""
    chunk = other_chunk(s.factory)
    if chunk is None:
        return Row("chunks", "noted", "no setting named chunk")
    apart = _mapped(s)[1]
    found = [f"chunks of {chunk} differ from the default by {apart:.1e}"] * (not apart <= 10 * rounding())
    return _row("chunks", found, f"chunks of {chunk} agree with the default to {apart:.1e}", difference=apart)


def _mapped(s: Subject) -> tuple[float, float]:
    """How far mapping over keys, and chunks, are off: one program does both, unless they must be told apart."""
    one = flat(s.estimate(keys(s.num_keys)[0], s.state, s.problem.params, s.problem.batch)[0])
    both = distance(s.estimates()[0], one)
    if both <= 10 * rounding() or other_chunk(s.factory) is None:
        return both, both
    alone = sampler(made(s.factory, s.problem.objective), s.problem)(keys(s.num_keys), s.state)[0]
    return distance(alone, one), distance(s.estimates()[0], alone)


def bad_input(s: Subject) -> Row:
    """Averaged losses and raw keys are refused with a ValueError, not used."""

    def averaged(params: Params, batch: Batch, propagate: Any = feedforward) -> Array:
        return jnp.mean(s.problem.objective(params, batch, propagate=propagate))

    found = []
    if not refuses(lambda: _traced(s, averaged, KEYS[0])):
        found.append(
            "takes an objective that averages over the batch: check its losses, "
            "nl_jax.checks.per_example(objective(params, batch))"
        )
    if is_random(s) and not refuses(lambda: _traced(s, s.problem.objective, jnp.zeros(2, jnp.uint32))):
        found.append("takes a raw key: check it, nl_jax.checks.typed_key(key)")
    return _row("bad input", found, "averaged losses and raw keys are a ValueError")


def is_random(s: Subject) -> bool:
    """Whether keys give different results; of ten, as some may happen to draw the same."""
    at = s.state, s.problem.params, s.problem.batch
    one, *others = (s.estimate(key, *at)[0] for key in jax.random.split(KEYS[0], 10))
    return any(distance(other, one) > rounding() for other in others)


def refuses(run: Callable[[], Any]) -> bool:
    """Whether running it is a ValueError; any other error is let through."""
    try:
        run()
    except ValueError:
        return True
    return False


def rounding(dtype: Any = None) -> float:
    """Relative differences that arithmetic in another order may make: √ε of the dtype, or of the default one."""
    return float(jnp.finfo(jnp.result_type(float) if dtype is None else dtype).eps) ** 0.5


def distance(a: Any, b: Any) -> float:
    """‖a − b‖/‖b‖ of two trees, infinite if b alone is 0; NaN if they hold one."""
    ours, theirs = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (a, b))
    apart = sum(float(np.sum(np.square(x - y))) for x, y in zip(ours, theirs, strict=True))
    scale = sum(float(np.sum(np.square(y))) for y in theirs)
    return 0.0 if apart == 0 else (apart / scale) ** 0.5 if scale != 0 else np.inf


def _apart(ours: tuple[Params, State, Info], theirs: tuple[Params, State, Info]) -> float:
    """The largest distance of gradients, states and infos, none of which hides another by its size."""
    return max(distance(a, b) for a, b in zip(ours, theirs, strict=True))


def _once(s: Subject) -> tuple[Params, Any, Info]:
    return s.estimate(KEYS[0], s.state, s.problem.params, s.problem.batch)


def _run(factory: Any, objective: Any, s: Subject, key: Array) -> tuple[Params, State, Info]:
    """Made anew, and eager."""
    estimator = made(factory, objective)
    return estimator.estimate(
        key, estimator.init(jax.random.key(0), s.problem.params), s.problem.params, s.problem.batch
    )


def _traced(s: Subject, objective: Any, key: Array) -> None:
    """The same without running it: what is refused is refused while tracing."""
    jax.eval_shape(lambda: _run(s.factory, objective, s, key))


def _row(check: str, found: list[str], said: str, **figures: Any) -> Row:
    return Row(check, "failed" if found else "passed", "; ".join(found) or said, figures)
