"""Runs a notebook's code cells without Jupyter: python -W error -m tests.notebooks docs/notebooks/lecture.ipynb."""

import json
import re
import sys
from pathlib import Path
from typing import Any

_MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def code_cells(path: Path) -> list[tuple[str, str]]:
    """The id and the Python of each code cell; a line for the notebook itself, such as `%pip`, becomes `pass`."""
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    return [(cell["id"], _MAGIC.sub(r"\1pass", "".join(cell["source"]))) for cell in cells]


def run(path: Path) -> None:
    """Runs the cells in order in one namespace; a traceback names the cell."""
    namespace = {"__name__": "__main__"}
    for name, code in code_cells(path):
        exec(compile(code, f"{path.name}, cell {name}", "exec"), namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
