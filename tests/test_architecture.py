"""Tests the import rules between packages, and that nothing private of JAX is used."""

import ast
import inspect
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import nl_jax as nl

pytestmark = pytest.mark.slow

ROOT = Path(nl.__file__).parent
REPOSITORY = ROOT.parent

# What each room may import of nl_jax; base lies below everything.
CORE = {"base", "_core"}
MAY_IMPORT = {
    "base": set(),
    "_core": {"base"},
    "propagation": CORE,
    "activations": CORE,
    "losses": CORE,
    "networks": {*CORE, "propagation", "activations"},
    "objectives": {*CORE, "propagation", "activations"},
    "estimators": {*CORE, "propagation", "objectives"},
    "rules": {*CORE, "propagation"},
    "optimizers": CORE,
    "training": {*CORE, "objectives", "estimators"},
    "evaluation": {*CORE, "propagation", "activations", "losses", "networks", "objectives", "rules"},
    "theory": set(),
}


def _files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name != "__init__.py")


def _room(module: str) -> str:
    return module.split(".")[1]


def _imports(path: Path) -> set[str]:
    """Full names of all modules a file imports, `from package import module` included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    imported = {_room(name) for name in _imports(path) if name.startswith("nl_jax.")}
    assert imported <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("folder", ["nl_jax", "experiments", "benchmarks", "tests"])
def test_nothing_private_of_jax(folder):
    private = ("jax._src", "jax.core", "jax.interpreters")  # names, not their use: this file has them as text
    for path in (REPOSITORY / folder).rglob("*.py"):
        reached = [ast.unparse(x) for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.Attribute)]
        assert not [name for name in [*_imports(path), *reached] if name.startswith(private)], path


def test_experiments_stay_short():
    """One figure each: configuration, run and plot; what grows longer becomes a package with one idea a file."""
    lengths = {path: len(path.read_text().splitlines()) for path in (REPOSITORY / "experiments").rglob("*.py")}
    assert lengths
    assert {path: length for path, length in lengths.items() if length >= 250} == {}


def test_the_core_needs_only_its_core_dependencies():
    needed = {"jax", "optax", "chex", "numpy", "nl_jax"}
    allowed = needed | {
        "tqdm",
        "matplotlib",
        "orbax",
        "tensorboard",
        "flax",
        "equinox",
    }  # imported where they are asked for
    standard = __import__("sys").stdlib_module_names
    for path in _files():
        foreign = {name.split(".")[0] for name in _imports(path)} - allowed - standard
        assert not foreign, path


def test_optional_libraries_are_not_imported_before_they_are_asked_for():
    program = "import sys, nl_jax; print(*{'flax', 'equinox', 'orbax', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_importing_starts_no_backend():
    """Who joins processes calls `jax.distributed.initialize` after the imports."""
    program = "import jax, nl_jax; jax.distributed.initialize('127.0.0.1:{port}', 1, 0); print(jax.process_count())"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        program = program.format(port=free.getsockname()[1])
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=True)
    twin = program.replace("nl_jax;", "nl_jax; jax.random.key(0);")
    failed = subprocess.run([sys.executable, "-c", twin], cwd=REPOSITORY, capture_output=True, text=True)
    assert "must be called before any JAX" in failed.stderr


def test_every_public_name_is_documented():
    for name in nl.__all__:
        value = getattr(nl, name)
        assert inspect.getdoc(value), name
        if inspect.ismodule(value):
            for member, function in inspect.getmembers(value, inspect.isfunction):
                if function.__module__.startswith(value.__name__) and not member.startswith("_"):
                    assert inspect.getdoc(function), f"{name}.{member}"


def test_estimators_take_the_objective_first_and_settings_by_name():
    for name in (
        "weight_perturbation",
        "node_perturbation",
        "forward_gradient",
        "backprop",
        "lagrangian_backprop",
        "equilibrium_propagation",
        "contrastive_hebbian",
    ):
        first, *settings = inspect.signature(getattr(nl, name)).parameters.values()
        assert first.name == "objective"
        assert all(p.kind is p.KEYWORD_ONLY for p in settings)
