"""Tabulates and draws errors against trials, their steps and the dimension of their inputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.temporal_task.measuring import RULES, Curve, Results, Setting, standard_error


def summary(setting: Setting, rule: str, curve: Curve) -> dict[str, Any]:
    """Returns a curve's setting, final error and law, as they are saved."""
    return dataclasses.asdict(setting) | {
        "rule": rule, "trials": curve.trials[-1], "final_error": curve.final.mean(),
        "standard_error": standard_error(curve.final), "law": curve.final_law, "off": curve.deviations[-1],
    }  # fmt: skip


def blocks(curve: Curve) -> dict[str, np.ndarray]:
    """Returns a curve's blocks as they are saved."""
    mean, error = curve.measured.mean(axis=1), standard_error(curve.measured)
    return {"at": curve.trials, "mean": mean, "error": error, "expected": curve.law}


def table(curves: Results) -> str:
    """The final errors as text; ± is one standard error over students."""
    lines = [f"{'inputs':10}{'T':>4}{'N_eff':>7}  {'rule':20}{'trials':>8}{'final error':>13}{'law':>19}{'off':>7}"]
    for (setting, rule), curve in curves.items():
        lines.append(
            f"{setting.inputs:10}{setting.steps:>4}{setting.dimension:>7}  {rule:20}{curve.trials[-1]:>8,}"
            f"{curve.final.mean():>13.5f} ±{standard_error(curve.final):8.5f}{curve.final_law:>9.5f}"
            f"{curve.deviations[-1]:>+7.1f}"
        )
    lines.append("final error: E − E_opt, mean over the last quarter of the trials. off: in standard errors.")
    return "\n".join(lines)


EXCESS = "$E - E_{opt}$"
TITLES = {"fresh": "fresh inputs, unreachable targets", "repeated": "repeated inputs, strong noise"}


def plot(curves: Results, dimension: int, length: int, outputs: int) -> Any:
    """Rows: fresh and repeated inputs. Columns: learning curves, final error against T and against N_eff.

    Args:
      curves: what was measured.
      dimension: N_eff of the learning curves and of the errors against T.
      length: T of the errors against N_eff.
      outputs: M, for the title.
    """
    from experiments.harness.plotting import figure, style

    canvas, panels = figure(2, 3, size=(15, 8.5))
    looks = {rule: style(index) for rule, index in zip(RULES, (2, 3), strict=True)}
    for (kind, title), (learning, against_steps, against_dimension) in zip(TITLES.items(), panels, strict=True):
        here = {key: curve for key, curve in curves.items() if key[0].inputs == kind}
        by_steps = {key: curve for key, curve in here.items() if key[0].dimension == dimension}
        by_dimension = {key: curve for key, curve in here.items() if key[0].steps == length}
        lengths = sorted({setting.steps for setting, _ in by_steps})
        for T, hollow in {lengths[-1]: False, lengths[0]: True}.items():
            shown = {rule: curve for (setting, rule), curve in by_steps.items() if setting.steps == T}
            for rule, curve in shown.items():
                part, look = curve.trials / curve.trials[-1], looks[rule]
                learning.plot(part, curve.law, color=look["color"], linestyle="--" if hollow else "-", linewidth=1.3)
                _dots(learning, part, curve.measured, look, f"{rule}, T = {T}", hollow)
        learning.set(yscale="log", xlabel="fraction of trials", ylabel=EXCESS, title=title)
        learning.legend(frameon=False, fontsize=9)
        _final(against_steps, {(s.steps, rule): curve for (s, rule), curve in by_steps.items()}, looks)
        _final(against_dimension, {(s.dimension, rule): curve for (s, rule), curve in by_dimension.items()}, looks)
        against_steps.set(xlabel="T, steps of a trial", title=f"final error at $N_{{eff}}$ = {dimension}")
        against_dimension.set(xlabel="$N_{eff}$, dimensions of the inputs", title=f"final error at T = {length}")
        against_steps.axvline(dimension, color="grey", linestyle=":", linewidth=1.4)
        against_dimension.axvline(length, color="grey", linestyle=":", linewidth=1.4, label="T = $N_{eff}$")
    handles, labels = panels[0, 2].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    students = next(iter(curves.values())).measured.shape[1]
    canvas.suptitle(f"Node and weight perturbation at one learning rate: {outputs} outputs, {students} students")
    return canvas


def _final(axes: Any, curves: Mapping[tuple[int, str], Curve], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Plots final errors and their laws against T or N_eff."""
    from experiments.harness.plotting import joined

    for rule, look in looks.items():
        x = sorted(at for at, of in curves if of == rule)
        chosen = [curves[at, rule] for at in x]
        law = joined(x, {"color": look["color"], "linewidth": 1.3})
        axes.plot(x, [c.final_law for c in chosen], label=f"{rule}, law", **law)
        _dots(axes, np.array(x), np.stack([c.final for c in chosen]), look, f"{rule}, measured")
        axes.set(xscale="log", yscale="log", ylabel=EXCESS)
        axes.xaxis.minorticks_off()
        axes.set_xticks(x, [str(at) for at in x])


def _dots(
    axes: Any, x: np.ndarray, values: np.ndarray, look: Mapping[str, Any], label: str, hollow: bool = False
) -> None:
    axes.errorbar(
        x, values.mean(axis=-1), standard_error(values), label=label, color=look["color"], marker=look["marker"],
        markersize=6, fillstyle="none" if hollow else "full", linestyle="none", zorder=look["zorder"],
    )  # fmt: skip
