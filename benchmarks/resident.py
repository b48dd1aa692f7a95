"""Peak resident memory of whole training processes, compared with MeZO in PyTorch.

python -m benchmarks.resident --help
"""

import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from benchmarks import pytorch, report
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.plotting import figure
from experiments.harness.results import Folder

DEPTH, INPUTS, CLASSES, STEPS = 4, 256, 10, 3


@dataclass(frozen=True)
class Config:
    """Train a network by one rule per process, one process after another, and measure the peak memory of each.

    A process makes the parameters of a tanh network and takes three jitted steps with a donated state, K = 1 and two
    evaluations. The floor is a process that makes the parameters and evaluates the loss. Prints a table and
    writes resident.json and resident.png to --out.
    """

    millions: tuple[int, ...] = (10, 100)
    """Parameters, in millions."""
    batch_size: int = 32
    """Examples."""
    out: Path = Path("results/benchmarks/resident")
    """Folder for the results."""


def run(config: Config) -> dict[str, dict[str, float]]:
    """Measures, prints and saves; returns peak MB by number of parameters and rule.

    Raises:
      ExperimentError: for an invalid setting, or if a process fails.
    """
    if not config.millions or min(*config.millions, config.batch_size) < 1:
        raise ExperimentError("--millions and --batch-size must be at least 1")
    folder = Folder(config.out, config, outputs=("resident.json", "resident.png"))
    torch = pytorch.module()
    names = [*RULES, *([MEZO] if torch is not None else [])]
    peaks: dict[str, dict[str, float]] = {}
    with tqdm(total=len(config.millions) * len(names), unit="process") as bar:
        for millions in config.millions:
            for name in names:
                bar.set_postfix_str(f"{millions} million, {name}")
                peaks.setdefault(f"{millions} million", {})[name] = _peak(name, millions, config.batch_size)
                bar.update()
    sizes = {f"{millions} million": _bytes(millions) / 1e6 for millions in config.millions}
    print("\n".join(report.aligned(_rows(peaks, sizes))))
    results = {"torch": None if torch is None else torch.__version__, "parameters_mb": sizes, "peak_mb": peaks}
    report.save(folder, "resident", results, plot(peaks, sizes))
    return peaks


def _peak(name: str, millions: int, batch_size: int) -> float:
    command = [sys.executable, "-m", "benchmarks.resident", "--process", name, str(millions), str(batch_size)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ExperimentError(f"the process of {name} with {millions} million parameters failed: {ran.stderr[-500:]}")
    return float(json.loads(ran.stdout.splitlines()[-1]))


def widths(millions: int) -> list[int]:
    """Layer sizes of a network with about this many million parameters."""
    hidden = round(((millions * 1e6) / (DEPTH - 2)) ** 0.5) // 8 * 8
    return [INPUTS, *[hidden] * (DEPTH - 1), CLASSES]


def _bytes(millions: int) -> int:
    sizes = widths(millions)
    return 4 * sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def _forward(objective: nl.base.Objective) -> Callable[..., Any]:
    return lambda state, batch: (state, jnp.mean(objective(state, batch)))


def _step(make: Callable[[nl.base.Objective], nl.Learner]) -> Callable[[nl.base.Objective], Callable[..., Any]]:
    def of(objective: nl.base.Objective) -> Callable[..., Any]:
        learner = make(objective)

        def step(params: Any, batch: Any) -> tuple[Any, Any]:
            state = learner.init(jax.random.key(0), params)
            state, info = learner.step(jax.random.key(1), state, batch)
            return state.params, info.loss

        return step

    return of


def _noisy(law: Any) -> Callable[[nl.base.Objective], nl.GradientEstimator]:
    both = nl.baselines.antithetic()
    return lambda objective: nl.weight_perturbation(objective, num_samples=1, directions=law, baseline=both)


_GAUSSIAN, _RANK_ONE = _noisy(nl.directions.gaussian()), _noisy(nl.directions.rank_one())
MEZO = "MeZO, PyTorch"
FLOOR = "forward pass alone"
RULES: Mapping[str, Callable[[nl.base.Objective], Callable[..., Any]]] = {
    FLOOR: _forward,
    "nl.seeded, Gaussian": _step(lambda of: nl.seeded(_GAUSSIAN(of), 1e-6)),
    "nl.seeded, rank one": _step(lambda of: nl.seeded(_RANK_ONE(of), 1e-6)),
    "nl.learner, Gaussian, SGD": _step(lambda of: nl.learner(_GAUSSIAN(of), optax.sgd(1e-6))),
    "nl.learner, backprop, SGD": _step(lambda of: nl.learner(nl.backprop(of), optax.sgd(1e-6))),
}


def _process(name: str, millions: int, batch_size: int) -> float:
    """Trains in this process; returns its peak memory in MB."""
    if name == MEZO:
        _in_pytorch(millions, batch_size)
    else:
        network = nl.mlp(widths(millions), activation=nl.activations.tanh())
        objective = nl.supervised(network.apply, nl.losses.cross_entropy)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3, leaf.dtype), shapes)  # no random numbers
        batch = jnp.ones([batch_size, INPUTS]), jnp.zeros(batch_size, int)
        step = jax.jit(RULES[name](objective), donate_argnums=0)
        for _ in range(STEPS):
            params, loss = step(params, batch)
            jax.block_until_ready(loss)
    if sys.platform == "linux":  # where rusage starts from the parent's peak
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes on macOS, units of 1024 elsewhere


def _in_pytorch(millions: int, batch_size: int) -> None:
    torch = pytorch.module()

    sizes, layers = widths(millions), []
    for into, out in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(into, out), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    step = pytorch.mezo_step(torch, model, torch.ones(batch_size, INPUTS), torch.zeros(batch_size, dtype=torch.long))
    for number in range(STEPS):
        step(number)


def _rows(peaks: Mapping[str, Mapping[str, float]], sizes: Mapping[str, float]) -> list[list[str]]:
    rows = [["peak resident MB", *(f"{size} ({sizes[size]:,.0f} MB)" for size in peaks)]]
    for name in next(iter(peaks.values())):
        rows.append([name, *(f"{of[name]:,.0f}" for of in peaks.values())])
    return rows


def plot(peaks: Mapping[str, Mapping[str, float]], sizes: Mapping[str, float]) -> Any:
    """Plots peak memory by rule, and the size of the parameters; a panel for each size."""
    canvas, panels = figure(1, len(peaks), size=(4.5 + 3 * len(peaks), 3.6))
    for index, (size, of) in enumerate(peaks.items()):
        panel = panels if len(peaks) == 1 else panels[index]
        names = list(of)
        panel.barh(range(len(names)), list(of.values()), color="#0072B2", height=0.6)
        panel.axvline(sizes[size], color="#D55E00", linestyle="--", label="parameters")
        panel.set_yticks(range(len(names)), names if index == 0 else [""] * len(names))
        panel.invert_yaxis()
        panel.set(title=f"{size} parameters", xlabel="peak resident memory (MB)")
    canvas.legend(*panel.get_legend_handles_labels(), loc="outside lower right", frameon=False)
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["--process"]:  # one contestant, in its own process
        print(json.dumps(_process(words[1], int(words[2]), int(words[3]))))
        return 0
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.resident")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
