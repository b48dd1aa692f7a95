"""Cost of `nl.fit` compared with a hand-written loop: updates per second of whole training runs.

python -m benchmarks.training --help
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from benchmarks import pytorch, report
from benchmarks.problem import Problem, problem
from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, ratio


@dataclass(frozen=True)
class Case:
    """One network, its data and its training."""

    sizes: tuple[int, ...]
    """Units per layer, input to output (tanh, cross-entropy)."""
    examples: int
    """Random examples, reshuffled in each pass."""
    batch_size: int
    """Examples per update."""
    steps: int
    """Updates per run."""


@dataclass(frozen=True)
class Config:
    """Time whole training runs: nl.fit beside a hand-written scan, a Python loop and PyTorch.

    All use Adam and the same batch shape. They only make updates: no progress bar, no evaluation. Writes training.json
    and training.png to --out.
    """

    small: Case = Case((64, 32, 10), examples=1797, batch_size=100, steps=2000)
    """A case of the size of scikit-learn's digits."""
    large: Case = Case((784, 256, 256, 10), examples=60_000, batch_size=128, steps=400)
    """A case of the size of MNIST."""
    num_samples: int = 8
    """K, samples of node perturbation."""
    rounds: int = 11
    """Interleaved repeats; the table shows medians and quartiles."""
    out: Path = Path("results/benchmarks/training")
    """Folder for the results."""
    quick: bool = False
    """Three rounds of at most 200 and 100 updates: a smoke test in which fixed costs weigh more."""


Run = Callable[[], Any]
"""Makes a training run from the same initial state; returns the final parameters."""

_FIT, _WHOLE, _SCAN = "nl.fit", "nl.fit, all steps in one dispatch", "hand-written scan"


def run(config: Config) -> dict[str, dict[str, Spread]]:
    """Measures, prints a table and saves; returns the speed of `nl.fit` relative to each contestant."""
    if config.quick:
        cases = zip((config.small, config.large), (200, 100), strict=True)
        small, large = (dataclasses.replace(case, steps=min(case.steps, most)) for case, most in cases)
        config = dataclasses.replace(config, rounds=min(config.rounds, 3), small=small, large=large)
    folder = Folder(config.out, config, outputs=("training.json", "training.png"))
    torch = pytorch.module()
    named = {"small": config.small, "large": config.large}
    groups: dict[str, dict[str, Sequence[Run]]] = {}
    for size, case in named.items():
        groups |= {f"{size}, {rule}": runs for rule, runs in contestants(case, config.num_samples, torch).items()}

    # Each runs once before it is timed. Nothing is compiled after that: fit caches its compiled dispatch by learner,
    # order, record, batch size and steps, which are the same in every run (a test checks for compilations).
    seconds = report.timed(
        {f"{group}: {n}": ways for group, of in groups.items() for n, ways in of.items()}, config.rounds
    )
    faster = {
        group: {n: ratio(seconds[f"{group}: {n}"], seconds[f"{group}: {_FIT}"]) for n in runs if n != _FIT}
        for group, runs in groups.items()
    }
    steps = {group: named[group.partition(",")[0]].steps for group in groups}
    rates = {g: {n: steps[g] / float(np.median(seconds[f"{g}: {n}"])) for n in runs} for g, runs in groups.items()}
    print("\n".join(_table(config, named, rates, faster)))
    results = {
        "torch": None if torch is None else torch.__version__,
        "updates_per_second": rates,
        "speed_of_fit_over": {g: {n: value._asdict() for n, value in of.items()} for g, of in faster.items()},
    }
    title = f"small {_title(config.small)}; large {_title(config.large)}; {jax.devices()[0].device_kind}"
    label = "speed of nl.fit over that of … (dashed: 1)"
    report.save(folder, "training", results, report.ratios_figure(faster, label, title))
    return faster


def contestants(case: Case, samples: int, torch: Any = None) -> dict[str, dict[str, Sequence[Run]]]:
    """Training runs by learning rule, then by contestant, in one way or several; `torch` is None to leave it out."""
    on, optimizer = problem(case.sizes, case.examples), optax.adam(1e-3)
    exact = nl.backprop(on.objective)
    perturbed = nl.node_perturbation(on.objective, num_samples=samples, directions=nl.directions.rademacher())

    def derivative(key: jax.Array, params: Any, batch: Any) -> tuple[jax.Array, Any]:
        del key
        return jax.value_and_grad(on.mean_loss)(params, batch)

    def estimate(key: jax.Array, params: Any, batch: Any) -> tuple[jax.Array, Any]:
        grads, _, info = perturbed.estimate(key, (), params, batch)
        return info.loss, grads

    learner = nl.learner(exact, optimizer)
    backprop: dict[str, Sequence[Run]] = {
        _FIT: [_fit(learner, on, case)],
        _WHOLE: [_fit(learner, on, case, steps_per_dispatch=case.steps)],
        _SCAN: [_scan(derivative, optimizer, on, case)],
        "Python loop of jitted learner.step": [_loop(learner, on, case)],
    }
    if torch is not None:
        backprop[pytorch.title(torch)] = pytorch.with_threads(torch, _torch_loop(torch, on, case))
    noisy = nl.learner(perturbed, optimizer)
    node_perturbation: dict[str, Sequence[Run]] = {
        _FIT: [_fit(noisy, on, case)],
        _WHOLE: [_fit(noisy, on, case, steps_per_dispatch=case.steps)],
        _SCAN: [_scan(estimate, optimizer, on, case)],
    }
    return {"backprop": backprop, f"node perturbation, K = {samples}": node_perturbation}


_INIT, _RUN = jax.random.key(1), jax.random.key(2)


def _fit(learner: nl.Learner, on: Problem, case: Case, **settings: Any) -> Run:
    state = learner.init(_INIT, on.params)  # outside: it is not compiled here, but is part of the scan's program
    counts: dict[str, Any] = {"num_steps": case.steps, "batch_size": case.batch_size}

    def train() -> Any:
        return nl.fit(learner, _RUN, state, on.data, progress=False, **counts, **settings)[0].params

    return train


def _scan(
    value_and_grad: Callable[..., tuple[jax.Array, Any]],
    optimizer: optax.GradientTransformation,
    on: Problem,
    case: Case,
) -> Run:
    """A run in JAX alone: one scan, batches gathered by index. It uses fit's keys, hence the result is the same."""

    @jax.jit
    def scanned(key: jax.Array, params: Any, data: Any) -> Any:
        step_key, order_key = jax.random.split(key)
        first, examples = jnp.int32(0), data[0].shape[0]
        chosen = nl.batching.shuffled(order_key, first, case.steps, examples, case.batch_size)

        def one(carry: tuple[Any, Any], now: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
            (params, state), (step, index) = carry, now
            batch = jax.tree.map(lambda x: x[index], data)
            loss, grads = value_and_grad(jax.random.fold_in(step_key, step), params, batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(one, (params, optimizer.init(params)), (jnp.arange(case.steps), chosen))
        return params, losses

    def train() -> Any:
        params, losses = scanned(_RUN, on.params, on.data)
        jax.device_get(losses)  # fetched for inspection, like fit's
        return params

    return train


def _loop(learner: nl.Learner, on: Problem, case: Case) -> Run:
    """The README's way to use a learner without `fit`."""
    inputs, labels = map(np.asarray, on.data)  # NumPy gathers four times faster than JAX outside jit

    @jax.jit
    def step(key: jax.Array, state: Any, batch: Any) -> Any:
        return learner.step(jax.random.fold_in(key, state.step), state, batch)  # folding inside jit costs nothing

    def train() -> Any:
        state = learner.init(_INIT, on.params)
        losses = []
        for index in _passes(np.random.default_rng(0).permutation, case):
            state, info = step(_RUN, state, (inputs[index], labels[index]))
            losses.append(info.loss)
        jax.device_get(losses)
        return state.params

    return train


def _torch_loop(torch: Any, on: Problem, case: Case) -> Run:
    """The loop of PyTorch's tutorials, without their DataLoader, which would take longer than the small network."""
    inputs, labels = pytorch.tensors(torch, on)

    def train() -> Any:
        model = pytorch.twin(torch, on)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for index in _passes(torch.randperm, case):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[index]), labels[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return model

    return train


def _passes(permutation: Callable[[int], Any], case: Case) -> Iterator[Any]:
    """Indices of one batch after another; each pass has its own order."""
    per_pass = case.examples // case.batch_size
    order = None
    for step in range(case.steps):
        place = step % per_pass
        if order is None or place == 0:
            order = permutation(case.examples)
        yield order[place * case.batch_size : (place + 1) * case.batch_size]


def _title(case: Case) -> str:
    return f"{'-'.join(map(str, case.sizes))}, batch {case.batch_size}"


def _table(
    config: Config,
    cases: dict[str, Case],
    rates: dict[str, dict[str, float]],
    faster: dict[str, dict[str, Spread]],
) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (
            f"tanh, cross-entropy, Adam, float32, {jax.devices()[0].device_kind}; medians (quartiles) of "
            f"{config.rounds} interleaved rounds",
        ),
        *(
            (f"{size}: {_title(case)} of {case.examples} random examples, {case.steps} updates a run",)
            for size, case in cases.items()
        ),
        ("", "updates/s", "fit's speed over it"),
    ]
    for group, of in rates.items():
        rows.append((group,))
        for name, rate in of.items():
            rows.append((f"  {name}", f"{rate:9.0f}", str(faster[group].get(name, ""))))
    return report.aligned(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.training")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
