"""Trains backprop as a task's anchor (a known error) was trained, and compares their errors."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax

import nl_jax as nl
from experiments.atlas.cell import provenance
from experiments.atlas.page import task_and_method
from experiments.atlas.tasks import Task
from experiments.harness.finished import Finished
from nl_jax._core.numerics import mean_and_error

ALLOWED = 0.02
"""Allowed excess of backprop's error over the task's anchor."""

BACKPROP, ANCHORS = "backprop", "anchors"
"""The method compared with anchors, and the folder of these comparisons among the cells."""


def beside_anchor(task: Task, rate: float, seeds: int) -> dict[str, Any]:
    """Trains by backprop as the task's anchor was trained: with the validation examples too, and its updates.

    Args:
      task: a task with an anchor.
      rate: Adam's initial learning rate, chosen on the validation examples before.
      seeds: number of initialisations.
    """
    assert task.anchor is not None
    updates = task.anchor.updates or task.updates
    everything = jax.tree.map(lambda *parts: np.concatenate(parts), task.train, task.validation)
    estimator = nl.backprop(task.objective)
    found = nl.sweep(
        lambda rate: nl.learner(estimator, optax.adam(optax.cosine_decay_schedule(rate, updates))),
        {"rate": (rate,)}, jax.random.key(0), task.init, everything,
        score=lambda params: task.error(params, task.validation), test=lambda params: task.error(params, task.test),
        num_steps=updates, seeds=seeds, batch_size=task.batch_size, progress=False,
    )  # fmt: skip
    return {
        "known": task.anchor.error,
        "test errors": found.test,
        "rate": rate,
        "updates": updates,
        "examples": len(everything[0]),
        **provenance(),
    }


def from_anchors(finished: Finished, tasks: Iterable[str] | None = None) -> dict[str, float]:
    """Returns the excess of backprop's mean test error over its anchor, in units of the allowed excess.

    Args:
      finished: the finished parts.
      tasks: names of the tasks that are asked about; by default all with a finished comparison.
    """
    found = {}
    for part in finished:
        folder, name = task_and_method(part)
        if folder == ANCHORS and (tasks is None or name in tasks):
            anchor = finished[part]
            excess = float(np.mean(anchor["test errors"])) - anchor["known"]
            found[f"{name}, {BACKPROP}"] = max(0.0, excess) / ALLOWED
    return found


def known(anchor: Mapping[str, Any]) -> str:
    """Returns backprop's error beside the known one as text."""
    error = "{:.3f} ± {:.3f}".format(*mean_and_error(np.asarray(anchor["test errors"])))
    with_all = f"with all {anchor['examples']:,} examples and {anchor['updates']:,} updates"
    return f"backprop {with_all}: {error}, where {anchor['known']:g} is known"
