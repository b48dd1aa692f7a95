"""Judges, tabulates and draws errors against the number of examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness.results import Verdict
from experiments.linear_neuron.measuring import Point, Settings
from nl_jax.theory import linear_neuron

# Closer to N = D the errors' fourth moment is infinite, and a standard error is meaningless.
JUDGED_FROM = 8
ALLOWED = 5.0  # standard errors: errors have heavy tails, and up to a few hundred values of N are compared


def judged(points: Sequence[Point], settings: Settings) -> dict[int, float]:
    """Deviations by N where errors can be judged: not near N = D, nor where the law is 0, which rounding misses."""
    return {
        point.examples: point.deviation
        for point in points
        if abs(point.examples - settings.inputs) >= JUDGED_FROM and point.law > 0
    }


def verdict(deviations: Mapping[int, float]) -> Verdict:
    """The largest deviation, in standard errors."""
    return Verdict(float(np.max(np.abs(list(deviations.values())))), ALLOWED)


def table(points: Sequence[Point], settings: Settings) -> str:
    """The measurements as text, a row for each N; ± is one standard error over datasets."""
    walks = [f"{steps:,} steps" for steps in settings.steps]
    lines = [
        f"{'N':>5}{'N/D':>7}{'training':>10}{'test':>11}{'':8}{'law':>10}{'off':>7}"
        + "".join(f"{walk:>13}" for walk in walks)
    ]
    for point in points:
        mean, error = point.test_error.mean(), point.test_error.std(ddof=1) / len(point.test_error) ** 0.5
        can_be_judged = abs(point.examples - settings.inputs) >= JUDGED_FROM
        walked = "".join(f"{test:>13.4f}" for test in point.descent_test_error.mean(axis=1))
        lines.append(
            f"{point.examples:>5}{point.examples / settings.inputs:>7.2f}{point.training_error.mean():>10.4f}"
            f"{mean:>11.4f}" + (f" ±{error:6.4f}" if can_be_judged else f"{'':8}") + f"{point.law:>10.4f}"
            f"{f'{point.deviation:+.1f}' if can_be_judged else '–':>7}{walked}"
        )
    lines += [
        f"means over {settings.datasets} datasets of D = {settings.inputs} inputs; test: excess over the noise. "
        "off: test",
        f"minus law in standard errors, where |N − D| ≥ {JUDGED_FROM} (nearer, the standard error has no finite error",
        "itself). steps: test error of gradient descent from zero after so many.",
    ]
    deviations = judged(points, settings)
    if deviations:
        largest = verdict(deviations).largest_deviation
        lines.append(f"largest deviation from the law: {largest:.1f} standard errors at {len(deviations)} values of N")
    off = max(point.off_closed_form for point in points)
    lines.append(f"largest relative distance of descent's weights from their closed form: {off:.1e}")
    return "\n".join(lines)


def plot(points: Sequence[Point], settings: Settings) -> Any:
    """Plots test and training error against N/D, with theory as lines."""
    from experiments.harness.plotting import figure, style

    D = settings.inputs
    N = np.array([point.examples for point in points])
    everywhere = np.arange(N[0], N[-1] + 1)
    canvas, (test, training) = figure(1, 2, size=(12, 5))

    law = [linear_neuron.expected_excess_error(int(n), D, noise=settings.noise, signal=1.0) for n in everywhere]
    test.plot(everywhere / D, law, color="black", linewidth=1.4, label="law, exact for these N and D")
    test.axvspan((D - 1.5) / D, (D + 1.5) / D, color="grey", alpha=0.3, linewidth=0, label="law infinite, |N − D| ≤ 1")
    law = [linear_neuron.expected_training_error(int(n), D, noise=settings.noise) for n in everywhere]
    training.plot(everywhere / D, law, color="black", linewidth=1.4)

    def dots(
        axes: Any, index: int, errors: list[np.ndarray], label: str, size: float, heavy_tailed: bool = False
    ) -> None:
        look = style(index)
        means = np.array([np.mean(error) for error in errors])
        standard_errors = np.array([np.std(error, ddof=1) / len(error) ** 0.5 for error in errors])
        if heavy_tailed:
            means = np.where(abs(N - D) > 1, means, np.nan)
            standard_errors = np.where(abs(N - D) >= JUDGED_FROM, standard_errors, np.nan)
        axes.errorbar(
            N / D, means, standard_errors, label=label, color=look["color"], marker=look["marker"], markersize=size,
            fillstyle="none", linestyle="none", zorder=2 + index,
        )  # fmt: skip

    label = "minimum norm: mean and standard error"
    dots(test, 2, [point.test_error for point in points], label, 8, heavy_tailed=True)
    dots(training, 2, [point.training_error for point in points], label, 8)
    for i, steps in enumerate(settings.steps):
        label = f"gradient descent from zero, {steps:,} steps"
        dots(test, (1, 3, 5)[i % 3], [point.descent_test_error[i] for point in points], label, 4.5)
        dots(training, (1, 3, 5)[i % 3], [point.descent_training_error[i] for point in points], label, 4.5)

    test.set(yscale="log", ylabel="test error − σ²", title="test error")
    training.set(ylabel="training error $L^{tr}$", title="training error")
    for axes in (test, training):
        axes.set(xlabel="training examples per input, N/D")
    handles, labels = test.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    setting = f"D = {D} inputs, |w| = 1, noise σ = {settings.noise:g}, {settings.datasets:,} datasets for each N"
    canvas.suptitle(f"Linear neuron: {setting}")
    return canvas
