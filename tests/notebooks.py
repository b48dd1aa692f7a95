"""Runs notebooks' code cells without Jupyter: python -W error -m tests.notebooks docs/notebooks/lecture.ipynb.

Several run one after another in one process: JAX starts once, and what they compile alike is compiled once.
"""

import contextlib
import gc
import io
import json
import re
import sys
import traceback
from collections.abc import Sequence
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


def main(paths: Sequence[Path]) -> int:
    """Prints as JSON what each notebook said and the error that ended it, if one did; returns the exit code."""
    gc.set_threshold(100_000, 20, 100)  # tracing makes many objects and little garbage
    found = {}
    for path in paths:
        error = ""
        with contextlib.redirect_stdout(io.StringIO()) as said:
            try:
                run(path)
            except Exception:
                error = traceback.format_exc()
        found[path.stem] = {"said": said.getvalue(), "error": error}
        _forget()
    print(json.dumps(found))
    return any(of["error"] for of in found.values())


def _forget() -> None:
    """Undoes what a notebook sets for the whole process. It imports nothing: that the cells do so is tested."""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_default_matmul_precision", None)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
        sys.modules["matplotlib"].rcdefaults()


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
