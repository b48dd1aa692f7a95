"""Tabulates the methods of one task, best first."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.atlas.methods import Method
from nl_jax._core.numerics import mean_and_error


def table(cells: Mapping[str, Any], task: str, methods: Mapping[str, Method]) -> str:
    """Returns one task's methods as text, best first; ± is a standard error over seeds."""
    heads = f"{'test error':>18}{'behind backprop':>20}{'evaluations':>13}{'to the goal':>13}{'MB':>7}"
    lines = [f"{'method':30}{heads}  it may see"]
    rest = []
    own = {name: cells[f"{task}/{name}"] for name in methods if f"{task}/{name}" in cells}
    exact = own.get("backprop", {})
    for name, cell in sorted(own.items(), key=lambda of: np.mean(of[1].get("test errors", np.inf))):
        if cell["status"] != "measured":
            rest.append(f"{name:30}{cell['status']}: {cell['why'].splitlines()[0][:90]}")
            continue
        errors = np.asarray(cell["test errors"])
        behind = ""
        if exact.get("status") == "measured":
            behind = "{:.3f} ± {:.3f}".format(*mean_and_error(errors - np.asarray(exact["test errors"])))
        error = "{:.3f} ± {:.3f}".format(*mean_and_error(errors))
        reached = cell["evaluations to the goal"]
        lines.append(
            f"{name:30}{error:>18}{behind:>20}{cell['evaluations']:>13,}"
            f"{f'{reached:,}' if reached else 'never':>13}{(cell['bytes'] or 0) / 1e6:>7.2f}  {cell['verdict']}"
        )
    return "\n".join(lines + rest)
