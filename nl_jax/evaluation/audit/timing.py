"""Finds when an update gets its information: whether it reads later steps, and whether memory grows with their number.

`levels.py` defines the level of a value and finds it.
"""

from typing import Any, Literal, NamedTuple

import jax

from nl_jax.base import Batch, GradientEstimator, Params, Program
from nl_jax.evaluation.audit.levels import ACAUSAL, CAUSAL, NONE, Analysis, Level
from nl_jax.propagation import interpret, plain_loop

When = Literal["online", "online, judged at the end", "acausal"]
Memory = Literal["constant", "grows"]


class Timing(NamedTuple):
    """How an estimate depends on time.

    Attributes:
      when: "online" if no step's contribution to the update reads a later step; "online, judged at the end" if the only
        later information it reads is each example's loss; else "acausal".
      memory: "grows" if any value with an axis of steps, other than the batch itself, is kept for the update.
    """

    when: When
    memory: Memory


def timing(estimator: GradientEstimator, program: Program, params: Params, batch: Batch, loop: str) -> Timing:
    """Finds when an estimator's updates get their information, from the estimate's jaxpr; nothing is run.

    Args:
      estimator: an estimator made for `program`, whose losses are marked.
      program: an objective.
      params, batch: the estimator's arguments; only shapes and dtypes of arrays are used.
      loop: the name of the program's loop over time.

    Raises:
      ValueError: if the program has no such loop, or another axis of the batch or of a parameter has the same size as
        the number of steps, so that axes of steps cannot be identified.
    """
    steps = _steps(program, params, batch, loop)
    _require_distinct(steps, params, batch)
    key = jax.random.key(0)
    state = jax.eval_shape(estimator.init, key, params)
    closed, shapes = jax.make_jaxpr(estimator.estimate, return_shape=True)(key, state, params, batch)
    known = [Level(NONE)] * len(jax.tree.leaves((key, state, params)))
    known += [Level(CAUSAL if steps in leaf.shape else NONE, raw=True) for leaf in jax.tree.leaves(batch)]
    analysis = Analysis(steps)
    outputs = analysis.run(closed, known, inside=False)
    lengths = [len(jax.tree.leaves(part)) for part in shapes]
    grads = outputs[: lengths[0]]
    needed = [i < lengths[0] + lengths[1] for i in range(len(outputs))]  # gradients and what the state keeps
    late, judged = max(level.time for level in grads) == ACAUSAL, any(level.judged for level in grads)
    when: When = "acausal" if late else "online, judged at the end" if judged else "online"
    return Timing(when, "grows" if analysis.grows(closed.jaxpr, needed) else "constant")


def _steps(program: Program, params: Params, batch: Batch, loop: str) -> int:
    met: dict[str, int] = {}

    def noting(name: str, body: Any, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        leaves = jax.tree.leaves(xs)
        met[name] = leaves[0].shape[0] if leaves else int(length or 0)
        return plain_loop(name, body, carry, xs, length)

    layer = lambda site, given: (site.axons(), None)
    jax.eval_shape(lambda params, batch: interpret(program, layer, loop=noting)(params, batch)[0], params, batch)
    if loop not in met:
        there = ", ".join(map(repr, met)) or "none"
        raise ValueError(f"the program has no loop named loop={loop!r}, its loops are {there}")
    return met[loop]


def _require_distinct(steps: int, params: Params, batch: Batch) -> None:
    sizes = [size for leaf in jax.tree.leaves(params) for size in leaf.shape]
    twice = any(leaf.shape.count(steps) > 1 for leaf in jax.tree.leaves(batch))
    if steps in sizes or twice or steps < 2:
        raise ValueError(
            f"the loop has {steps} steps, which must be a size of its own among those of parameters and batch, and at "
            "least 2, so that axes of steps can be told from others: audit a batch of another number of steps"
        )
