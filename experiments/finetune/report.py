"""Judges, tabulates and draws the measurements of fine-tuning."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.finetune import data
from nl_jax._core.numerics import mean_and_error

ROOM = 1_000_000  # largest allowed size of a fine-tuned model's log, in bytes


class Results(NamedTuple):
    """Results by method: the chosen rate; validation losses by rate, if several were tried; steps and evaluations
    [moments + 1]; held-out losses [seeds, moments + 1, prompts]; seconds per step; temporaries in bytes. For all logs:
    the size of the largest in bytes, and 1 if the model rebuilt from a log differs, else 0."""

    rates: dict[str, float]
    tried: dict[str, dict[float, float]]
    steps: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    seconds: dict[str, float]
    temporaries: dict[str, int]
    log_bytes: int
    bits_differ: int


def deviations(results: Results) -> dict[str, float]:
    """Returns the judged deviations, each in units of its allowed value."""
    risen = {}
    for method, losses in results.losses.items():
        of_prompts = losses.mean(axis=0)  # [moments + 1, prompts]
        mean, error = mean_and_error(of_prompts[-1] - of_prompts[0])
        # The loss must fall by at least two standard errors.
        risen[f"held-out loss by {method}"] = max(0.0, 2 + mean / (2 * error)) if error else float(mean >= 0) * 2
    return {
        **risen,
        "bytes of the log, of 1 MB": results.log_bytes / ROOM,
        "bits of the rebuilt model that differ": float(results.bits_differ),
    }


def rows(results: Results) -> dict[str, dict[str, Any]]:
    """Returns by method the held-out loss before and after and its fall, each with its standard error over prompts; for
    the fall also the standard error over seeds, which is infinite for one seed."""
    found = {}
    for method, losses in results.losses.items():
        of_prompts = losses.mean(axis=0)  # over seeds
        found[method] = {
            "before": mean_and_error(of_prompts[0]), "after": mean_and_error(of_prompts[-1]),
            "fall": mean_and_error(of_prompts[0] - of_prompts[-1]), "of seeds": losses.mean(axis=2)[:, -1],
            "over seeds": mean_and_error((losses[:, 0] - losses[:, -1]).mean(axis=1))[1],
            "rate": results.rates[method], "validation loss by rate": results.tried[method],
            "seconds a step": results.seconds[method], "temporaries": results.temporaries.get(method),
        }  # fmt: skip
    return found


def table(results: Results, task: data.Task) -> str:
    """Returns the measurements as text; ± is one standard error over held-out prompts, or over seeds where named so."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(task.params))
    head = ["", "rate", "evaluations", "before", "after", "fall", "over seeds", "s a step", "temporaries"]
    lines = [head]
    for method, row in rows(results).items():
        figures = [f"{mean:.3f} ± {error:.3f}" for mean, error in (row["before"], row["after"], row["fall"])]
        over = f"± {row['over seeds']:.3f}" if np.isfinite(row["over seeds"]) else "one seed"
        seconds = f"{row['seconds a step']:.3g}" if np.isfinite(row["seconds a step"]) else "not timed"
        held = "not measured" if row["temporaries"] is None else f"{row['temporaries'] / 1e6:,.1f} MB"
        spent = str(results.evaluations[method][-1])
        lines.append([method, f"{row['rate']:.2g}", spent, *figures, over, seconds, held])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"{task.name}: parameters {size / 1e6:,.1f} MB"]
    text += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    same = "to the last bit" if not results.bits_differ else "but not to the last bit"
    text.append(f"fine-tuned model as its log: {results.log_bytes:,} bytes at most, rebuilt from it {same}")
    return "\n".join(text)


def plot(results: Results, task: data.Task) -> Any:
    """Plots held-out loss against evaluations and against seconds, and temporaries if measured."""
    from experiments.harness.plotting import figure, style

    panels = 3 if results.temporaries else 2
    canvas, (spent, clock, *others) = figure(1, panels, size=(5 * panels, 4.5))
    for i, (method, losses) in enumerate(results.losses.items()):
        look, of_seeds = {**style(i), "markevery": None}, losses.mean(axis=2)  # [seeds, moments + 1]
        x, mean = results.evaluations[method], of_seeds.mean(axis=0)
        fall = losses.mean(axis=0)[:1] - losses.mean(axis=0)
        error = fall.std(axis=1, ddof=1) / fall.shape[1] ** 0.5
        for axes, at in ((spent, x), (clock, results.steps[method] * results.seconds[method])):
            if np.isfinite(at).all():
                axes.plot(at, mean, label=method, **look)
                axes.fill_between(at, mean - error, mean + error, color=look["color"], alpha=0.15, linewidth=0)
    spent.set(xlabel="evaluations of the objective", ylabel="held-out loss (nats)", title=task.name)
    clock.set(xlabel="seconds", ylabel="held-out loss (nats)", title="the same against time")
    spent.legend(frameon=False)
    for held in others:
        for i, of in enumerate(results.temporaries.values()):
            held.barh(i, of / 1e6, color=style(i)["color"])
        held.set(xlabel="temporaries of a step (MB)", title="memory beside the parameters")
        held.set_yticks(range(len(results.temporaries)), list(results.temporaries))
    return canvas
