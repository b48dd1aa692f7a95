"""Judges, tabulates and draws the student and the network at every B."""

from typing import Any, NamedTuple

import numpy as np

from experiments.harness.results import Verdict, with_error
from experiments.harness.sweep import Scores, fastest, first_at_most
from experiments.minibatch.student import Student, crossed, examples_of, tried
from nl_jax._core.numerics import mean_and_error
from nl_jax.theory import student_teacher

ALLOWED = 5.0  # standard errors, for a few hundred comparisons


class Settings(NamedTuple):
    """The settings of `Config` that tables and figures need."""

    inputs: int
    rates: tuple[float, ...]
    target: float
    examples: int


class Results(NamedTuple):
    """By B: the student, and the network's scores; and the numbers of examples at which the network is measured."""

    student: dict[int, Student]
    examples: np.ndarray
    network: dict[int, Scores]


def row(B: int, results: Results, settings: Settings) -> dict[str, Any]:
    """Results of both learners with B examples per step; the network's are [seeds], at its chosen rate."""
    loss, law = results.network[B].loss, results.student[B].law
    best = fastest(loss["validation"], settings.target, results.examples)
    return {
        "student's rate": law.best_rate / B, "examples by law": examples_of(law, B),
        "examples measured": B * crossed(results.student[B]), "rate": settings.rates[best],
        "examples": first_at_most(settings.target, loss["test"][best], results.examples),
        "test loss": loss["test"][best, :, -1], "test error": results.network[B].error["test"][best, :, -1],
    }  # fmt: skip


def verdict(results: Results) -> Verdict:
    """The largest deviation of a student's mean error from its law."""
    return Verdict(float(np.max([student.deviation for student in results.student.values()])), ALLOWED)


def table(results: Results, settings: Settings) -> str:
    """The measurements as text, a row for each B; ± is one standard error over seeds."""
    lines = [
        f"{'':5}{'linear student,':>20}{'examples to 1/1000':>24}{'network,':>14}{'examples to':>20}",
        f"{'B':>5}{'rate of Σ':>11}{'of mean':>9}{'law':>12}{'measured':>12}{'rate of Σ':>14}{'of mean':>9}"
        f"{f'{settings.target:g} nats, test':>19}{'test loss':>18}{'test error %':>15}",
    ]
    for B in results.student:
        found = row(B, results, settings)
        of_sum, rate = found["student's rate"], found["rate"]
        lines.append(
            f"{B:>5}{of_sum:>11.4f}{B * of_sum:>9.4f}{found['examples by law']:>12,.0f}"
            f"{found['examples measured']:>12,.0f}{rate:>14g}{B * rate:>9g}{with_error(found['examples'], 0):>19}"
            f"{with_error(found['test loss'], 4):>18}{with_error(100 * found['test error'], 2):>15}"
        )
    lines += [
        "rate of Σ: the best learning rate for the gradient of the sum over the batch; of mean: B times as large, the",
        "same step. The student's is by its law, the network's by validation. Test loss and error: after",
        f"{settings.examples:,} examples. Largest deviation of the student's mean error from its law: "
        f"{verdict(results).largest_deviation:.1f} standard errors",
    ]
    return "\n".join(lines)


def arrays_of(results: Results) -> dict[str, Any]:
    """Returns the errors and losses as they are saved."""
    arrays: dict[str, Any] = {"network examples": results.examples}
    for B, student in results.student.items():
        arrays |= {f"student {B} errors": student.errors}
    for B, of_network in results.network.items():
        arrays |= {f"network {B} {part} loss": loss for part, loss in of_network.loss.items()}
    return arrays


def plot(results: Results, settings: Settings) -> Any:
    """Above, the linear student with its laws; below, the network."""
    from experiments.harness.plotting import band, figure, style

    canvas, ((curves, factors, needed), (test, by_rate, by_batch)) = figure(2, 3, size=(15, 9))
    law = {"color": "black", "linewidth": 1.2, "zorder": 1}
    points = {"linestyle": "none", "markevery": None, "fillstyle": "none"}
    batches = list(results.student)
    shown = {
        B: style(i) for i, B in enumerate(batches[:: -(-len(batches) // 4)])
    }  # a subset, since a plot of all curves would be unreadable

    for B, look in shown.items():
        student = results.student[B]
        steps, dots = np.arange(1, len(student.at_best_rate)), {**look, **points, "label": f"B = {B}"}
        curves.plot(B * steps, student.law.curve(1.0, student.law.best_rate, steps), color=look["color"], linewidth=1.2)
        at = np.unique(np.geomspace(1, steps[-1], 20).round().astype(int))
        curves.plot(B * at, student.at_best_rate[at].mean(axis=1), **{**dots, "markersize": 4})
        rates = np.linspace(0, 1.05 * student.law.stability_limit, 100)
        factors.plot(rates / B, student.law.factor(rates), color=look["color"], linewidth=1.2)
        means, errors = np.transpose([mean_and_error(after) for after in student.errors[:, 1]])
        factors.errorbar(tried(student.law) / B, means, errors, **dots)
    curves.set(xscale="log", yscale="log", xlabel="examples seen", ylabel="‖Δ‖² / initial ‖Δ‖²")
    curves.set(title="linear student at its best rate: dots measured, lines law")
    factors.axhline(1, color="#888888", linewidth=1, linestyle=":")
    factors.set(xlabel="learning rate of the sum over B examples", ylabel="‖Δ′‖² / ‖Δ‖² after one step")
    factors.set(title="linear student, one step", xlim=(0, None))

    every = np.geomspace(batches[0], batches[-1], 100)
    recursions = [student_teacher.backprop(settings.inputs, batch=B) for B in every]
    needed.plot(every, [examples_of(one, B) for one, B in zip(recursions, every, strict=True)], **law, label="law")
    taken = [B * crossed(student) for B, student in results.student.items()]
    needed.plot(batches, taken, **{**style(2), **points}, label="measured")
    needed.axvline(settings.inputs + 1, color="#888888", linewidth=1, linestyle=":", label="B = N + 1")
    needed.set(ylabel="examples to 1/1000 of the error", title="linear student: examples needed")
    needed.legend(frameon=False)

    for B, look in shown.items():
        loss = results.network[B].loss
        best = settings.rates.index(row(B, results, settings)["rate"])
        band(test, results.examples, loss["test"][best].T, look, f"B = {B}")
        updates = first_at_most(settings.target, loss["validation"], results.examples)
        reached = np.flatnonzero(np.isfinite(updates).all(axis=1))
        band(by_rate, np.array(settings.rates)[reached], updates[reached], {**look, "markevery": None}, f"B = {B}")
    test.axhline(settings.target, color="#888888", linewidth=1, linestyle=":", zorder=1)
    test.set(xscale="log", yscale="log", xlabel="examples seen", ylabel="test loss (nats)")
    test.set(title="network, at the rate chosen on validation data")
    by_rate.set(xscale="log", yscale="log", xlabel="learning rate of the sum over B examples")
    by_rate.set(
        ylabel=f"examples to a validation loss of {settings.target:g}",
        title="network, at all rates that reach the goal",
    )
    examples = np.array([row(B, results, settings)["examples"] for B in batches])
    reached = np.flatnonzero(np.isfinite(examples).all(axis=1))
    band(by_batch, np.array(batches)[reached], examples[reached], {**style(3), "markevery": None}, "test")
    by_batch.set(ylabel=f"examples to a test loss of {settings.target:g}", title="network: examples needed")
    for panel in (needed, by_batch):
        panel.set(xscale="log", yscale="log", xlabel="B, examples a step")
    canvas.legend(*test.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle(f"Single examples against minibatches: a linear student of {settings.inputs} inputs, and a network")
    return canvas
