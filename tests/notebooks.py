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


def named(text: str) -> set[str]:
    """The pages and the experiments that a text names, as paths in the repository."""
    modules = re.findall(r"python -m (experiments[.\w]*)", text)
    pages = re.findall(r"`(docs/[\w/.]+)`", text)
    files = re.findall(r"`(\w+\.ipynb)`", text)
    return {*pages, *(f"docs/notebooks/{file}" for file in files), *(_module(name) for name in modules)}


def _module(name: str) -> str:
    path = Path(*name.split("."))
    return str(path if path.is_dir() else path.with_suffix(".py"))


def run(path: Path) -> None:
    """Runs the cells in order in one namespace; a traceback names the cell."""
    namespace = {"__name__": "__main__"}
    for name, code in code_cells(path):
        exec(compile(code, f"{path.name}, cell {name}", "exec"), namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
