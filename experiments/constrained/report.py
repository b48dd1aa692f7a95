"""Judges and tabulates the family's measurements."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.constrained.family import EXACT, GROUPS, MEMBERS, SOLVERS
from experiments.constrained.lesson import Settings
from experiments.constrained.measuring import Along, Course, Descent
from experiments.harness.results import verdict
from nl_jax._core.numerics import mean_and_error

SLOPE, ROUNDING, THEORY = 0.02, 1e-9, 1e-8  # allowed deviations


@dataclass
class Results:
    """The measurements so far."""

    along: Along | None = None
    descents: dict[str, Descent] = dataclasses.field(default_factory=dict)
    courses: dict[str, Course] = dataclasses.field(default_factory=dict)

    def deviations(self, settings: Settings) -> dict[str, float]:
        """Returns the deviations to judge, each in units of its allowed value."""
        found: dict[str, float] = {}
        if self.along is not None:
            decades = np.log(settings.penalties[-1] / settings.penalties[-2])
            slope = np.log(self.along.error[-1] / self.along.error[-2]) / decades
            found["error as 1/μ"] = float(np.abs(slope + 1).max() / SLOPE)
            found["linear network on its theory"] = float(self.along.missed.max() / THEORY)
        for name, descent in self.descents.items():
            found[f"{SOLVERS[name].label} comes to the gradient"] = float(
                descent.error[-1].max() / SOLVERS[name].allowed
            )
        for name in EXACT:
            if name in self.courses:
                ours, exact = self.courses[name].loss, self.courses["backprop"].loss
                found[f"{MEMBERS[name].label} learns as backprop"] = float(np.abs(ours / exact - 1).max() / ROUNDING)
        return found


def arrays(results: Results) -> dict[str, np.ndarray]:
    """Returns the arrays of all parts; each name starts with its part's name."""
    parts: dict[str, Any] = {**results.descents, **{f"{name} learned": c for name, c in results.courses.items()}}
    if results.along is not None:
        parts["along"] = results.along
    arrays: dict[str, np.ndarray] = {}
    for part, measured in parts.items():
        for name, value in measured._asdict().items():
            by_layer = {f" {layer}": of for layer, of in value.items()} if isinstance(value, dict) else {"": value}
            arrays |= {f"{part} {name}{layer}": of for layer, of in by_layer.items()}
    return arrays


def table(results: Results, settings: Settings) -> str:
    """Returns the measurements as text: the members' results, and the judged deviations."""
    lines = [f"{'member':40}{'test accuracy %':>18}{'training loss':>16}   angle to backprop at the end, degrees"]
    for group, members in GROUPS.items():
        here = [name for name in members if name in results.courses]
        lines += [group] if here else []
        for name in here:
            course = results.courses[name]
            accuracy, error = mean_and_error(100 * course.accuracy[-1])
            degrees = ", ".join(f"{layer} {of[-1].mean():.1f}" for layer, of in course.degrees.items())
            lines.append(
                f"  {MEMBERS[name].label:38}{f'{accuracy:.2f} ± {error:.2f}':>18}{course.loss[-1].mean():>16.5f}   "
                + degrees
            )
    if results.along is not None:
        lines.append("predictive coding, to the gradient")
        for i, mu in enumerate(settings.penalties):
            along = results.along
            accuracy, error = mean_and_error(100 * along.accuracy[i])
            lines.append(
                f"  {f'μ = {mu:g}':38}{f'{accuracy:.2f} ± {error:.2f}':>18}{'':19}"
                f"cosine {along.cosine[i].mean():.4f}, relative error {along.error[i].mean():.1e}"
            )
    deviations = results.deviations(settings)
    lines += ["judged, in units of what it may miss by (at most 1):"]
    lines += [f"  {name:58}{off:10.2g}" for name, off in deviations.items()]
    lines += [
        f"± one standard error over {settings.seeds} seeds; {settings.updates} updates of batch {settings.batch_size}, "
        "the same for all.",
        f"largest deviation: {verdict(deviations).largest_deviation:.2g} of what is allowed",
    ]
    return "\n".join(lines)
