"""Single examples compared with minibatches, at equal numbers of examples (seed 001 §4).

python -m experiments.minibatch --help
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict, with_error
from experiments.harness.sweep import Scores, Sets, fastest, first_at_most, scores, sweep, with_validation
from nl_jax._core.numerics import mean_and_error
from nl_jax.theory import student_teacher

OUTPUTS = 10  # of the linear student: with more outputs its error varies less between runs
FRACTIONS = 0.25, 0.5, 1.0, 1.5, 1.9  # rates relative to the best one, at which one step of the student is measured
REDUCTION = 1000.0  # of the student's error
MOMENTS = 40  # measurements of the network
ALLOWED = 5.0  # standard errors, for a few hundred comparisons


@dataclass(frozen=True)
class Config:
    """Train a linear student and a network by the gradient of a sum over B examples, for several B.

    The student's error has a law: single examples need the fewest examples, and batches of B need hardly more while B
    is below the number of inputs. Exits with 1 if the student does not follow the law. The network learns digits from
    the same number of examples at every B and rate; validation chooses the rate. Prints a table and writes config.json,
    metrics.jsonl, minibatch.json, minibatch.npz and minibatch.png to --out.
    """

    out: Path = Path("results/minibatch")
    """Folder for the results; files of an earlier run there are replaced."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """B, rising numbers of examples per step, each a divisor of the last."""
    inputs: int = 30
    """N, inputs of the linear student."""
    students: int = 400
    """Independent runs of the linear student."""
    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer of the network (tanh)."""
    rates: tuple[float, ...] = (0.003, 0.006, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3)
    """Learning rates of the network to try: they scale the gradient of the sum over the batch, not of the mean."""
    examples: int = 20_480
    """Examples that the network learns from at each B and rate, drawn with replacement."""
    target: float = 0.2
    """Loss in nats that the network has to reach; the examples until then are counted."""
    seeds: int = 5
    """Independent runs of the network for each B and rate."""
    quick: bool = False
    """A small version: three values of B and a fifth of the examples, in about a quarter of a minute."""


class Student(NamedTuple):
    """The linear student with B examples per step.

    Attributes:
      law: of its error.
      errors: ‖Δ‖² after 0, 1, 2 … steps at fractions of the best rate, relative to the initial value,
        [fractions, steps + 1, students].
    """

    law: student_teacher.Recursion
    errors: np.ndarray

    @property
    def at_best_rate(self) -> np.ndarray:
        """Errors at the best rate, [steps + 1, students]."""
        return self.errors[FRACTIONS.index(1.0)]

    @property
    def deviation(self) -> float:
        """Largest deviation of a mean from its law, in standard errors: one step at every rate, all at the best."""
        steps = np.arange(1, len(self.at_best_rate))
        said = np.r_[self.law.factor(_tried(self.law)), self.law.curve(1.0, self.law.best_rate, steps)]
        found = [mean_and_error(errors) for errors in (*self.errors[:, 1], *self.at_best_rate[1:])]
        return max(abs(mean - value) / error for (mean, error), value in zip(found, said, strict=True))


class Results(NamedTuple):
    """By B: the student, and the network's scores; and the numbers of examples at which the network is measured."""

    student: dict[int, Student]
    examples: np.ndarray
    network: dict[int, Scores]


def run(config: Config) -> Results:
    """Measures at every B in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if law and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, batches=config.batches[::3], examples=min(config.examples, 4096), seeds=min(config.seeds, 2),
            rates=config.rates[1::3],
        )  # fmt: skip
    _check(config)
    folder = Folder(config.out, config, outputs=[f"minibatch.{kind}" for kind in ("json", "npz", "png")])
    sets = with_validation(data.digits())
    mean = sets.train[0].mean(axis=0)
    sets = Sets(*((images - mean, labels) for images, labels in sets))
    largest = config.batches[-1]
    moments = np.unique(np.geomspace(1, config.examples // largest, MOMENTS).round().astype(int)) * largest
    results = Results({}, moments, {})
    network = nl.mlp([sets.train[0].shape[1], *config.hidden, 10], activation=nl.activations.tanh())
    estimator = nl.batch_sum(nl.backprop(nl.supervised(network.apply, nl.losses.cross_entropy)))
    learner, measure = lambda rate: nl.learner(estimator, optax.sgd(rate)), scores(network.apply)
    for B in tqdm(config.batches, unit="B"):
        results.student[B] = _student(B, config)
        results.network[B] = sweep(
            learner, network.init, measure, sets,
            rates=config.rates, seeds=config.seeds, batch_size=B, moments=(moments // B).tolist(),
        )  # fmt: skip
        folder.metric(batch=B, deviation=results.student[B].deviation, **row(B, results, config))
    found = verdict(results)
    deviations = {B: student.deviation for B, student in results.student.items()}
    folder.data(
        "minibatch",
        {**found._asdict(), "deviations": deviations, "rows": {B: row(B, results, config) for B in deviations}},
    )
    folder.arrays("minibatch", _arrays(results))
    folder.picture("minibatch", plot(results, config))
    print(table(results, config))
    print(f"picture and data: {folder.path} (minibatch.png, minibatch.npz, minibatch.json, config.json)")
    if not found.agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {found.largest_deviation:.1f} standard errors, where chance allows "
            f"{ALLOWED:g}"
        )
    return results


def _check(config: Config) -> None:
    batches = config.batches
    if (
        not batches
        or min(batches) < 1
        or sorted(set(batches)) != list(batches)
        or any(batches[-1] % B for B in batches)
    ):
        raise ExperimentError(f"--batches must be rising numbers of at least 1 that divide the last, got {batches}")
    for name, least in {"inputs": 1, "students": 2, "examples": batches[-1], "seeds": 1}.items():
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    if not config.hidden or min(config.hidden) < 1:
        raise ExperimentError(f"--hidden must be one or more numbers of at least 1, got {config.hidden}")
    if not config.rates or not all(0 < rate < np.inf for rate in config.rates):
        raise ExperimentError(f"--rates must be finite numbers above 0, got {config.rates}")
    if not 0 < config.target < np.inf:
        raise ExperimentError(f"--target must be a finite number above 0, got {config.target}")


def _tried(law: student_teacher.Recursion) -> np.ndarray:
    """Rates at which the student is measured, for the mean over its examples."""
    return law.best_rate * np.array(FRACTIONS)


def _student(B: int, config: Config) -> Student:
    """Measures a student of a linear teacher on fresh examples x ~ N(0, I), B per step."""
    law = student_teacher.backprop(config.inputs, batch=B)
    steps = int(np.ceil(_examples(law, B) / B))
    rng = np.random.default_rng(B)
    teachers = rng.standard_normal((config.students, config.inputs, OUTPUTS))
    teachers /= np.linalg.norm(teachers, axis=(1, 2), keepdims=True)
    x = rng.standard_normal((config.students, steps, B, config.inputs))
    network = nl.mlp([config.inputs, OUTPUTS], activation=nl.activations.identity(), bias=False)
    estimator = nl.batch_sum(nl.backprop(nl.supervised(network.apply, nl.losses.half_squared_error)))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def errors(rate: jax.Array, teacher: jax.Array, x: jax.Array) -> jax.Array:
        learner = nl.learner(estimator, optax.sgd(rate))
        key = jax.random.key(0)  # unused: backprop draws no random numbers

        def step(state: nl.LearnerState, x: jax.Array) -> tuple[nl.LearnerState, jax.Array]:
            state, _ = learner.step(key, state, (x, x @ teacher))
            return state, jnp.sum((state.params["output"]["weight"] - teacher) ** 2)

        return jax.lax.scan(step, learner.init(key, {"output": {"weight": jnp.zeros_like(teacher)}}), x)[1]

    found = np.asarray(errors(*(jnp.asarray(array, jnp.float32) for array in (_tried(law) / B, teachers, x))), float)
    return Student(law, np.insert(np.swapaxes(found, 1, 2), 0, 1.0, axis=1))


def row(B: int, results: Results, config: Config) -> dict[str, Any]:
    """Results of both learners with B examples per step; the network's are [seeds], at its chosen rate."""
    loss, law = results.network[B].loss, results.student[B].law
    best = fastest(loss["validation"], config.target, results.examples)
    return {
        "student's rate": law.best_rate / B, "examples by law": _examples(law, B),
        "examples measured": B * _crossed(results.student[B]), "rate": config.rates[best],
        "examples": first_at_most(config.target, loss["test"][best], results.examples),
        "test loss": loss["test"][best, :, -1], "test error": results.network[B].error["test"][best, :, -1],
    }  # fmt: skip


def _examples(law: student_teacher.Recursion, B: float) -> float:
    """Examples until the mean error has fallen to 1/1000, at the best rate."""
    return float(B * np.log(REDUCTION) / -np.log(law.factor(law.best_rate)))


def _crossed(student: Student) -> float:
    """Step at which the mean error falls to 1/1000, by log-linear interpolation between steps."""
    fallen = -np.log(student.at_best_rate.mean(axis=1))
    return float(np.interp(np.log(REDUCTION), fallen, np.arange(len(fallen))))


def verdict(results: Results) -> Verdict:
    """The largest deviation of a student's mean error from its law."""
    return Verdict(float(np.max([student.deviation for student in results.student.values()])), ALLOWED)


def table(results: Results, config: Config) -> str:
    """The measurements as text, a row for each B; ± is one standard error over seeds."""
    lines = [
        f"{'':5}{'linear student,':>20}{'examples to 1/1000':>24}{'network,':>14}{'examples to':>20}",
        f"{'B':>5}{'rate of Σ':>11}{'of mean':>9}{'law':>12}{'measured':>12}{'rate of Σ':>14}{'of mean':>9}"
        f"{f'{config.target:g} nats, test':>19}{'test loss':>18}{'test error %':>15}",
    ]
    for B in results.student:
        found = row(B, results, config)
        of_sum, rate = found["student's rate"], found["rate"]
        lines.append(
            f"{B:>5}{of_sum:>11.4f}{B * of_sum:>9.4f}{found['examples by law']:>12,.0f}"
            f"{found['examples measured']:>12,.0f}{rate:>14g}{B * rate:>9g}{with_error(found['examples'], 0):>19}"
            f"{with_error(found['test loss'], 4):>18}{with_error(100 * found['test error'], 2):>15}"
        )
    lines += [
        "rate of Σ: the best learning rate for the gradient of the sum over the batch; of mean: B times as large, the",
        "same step. The student's is by its law, the network's by validation. Test loss and error: after",
        f"{config.examples:,} examples. Largest deviation of the student's mean error from its law: "
        f"{verdict(results).largest_deviation:.1f} standard errors",
    ]
    return "\n".join(lines)


def _arrays(results: Results) -> dict[str, Any]:
    arrays: dict[str, Any] = {"network examples": results.examples}
    for B, student in results.student.items():
        arrays |= {f"student {B} errors": student.errors}
    for B, of_network in results.network.items():
        arrays |= {f"network {B} {part} loss": loss for part, loss in of_network.loss.items()}
    return arrays


def plot(results: Results, config: Config) -> Any:
    """Above, the linear student with its laws; below, the network."""
    from experiments.harness.plotting import band, figure, style

    canvas, ((curves, factors, needed), (test, by_rate, by_batch)) = figure(2, 3, size=(15, 9))
    law = {"color": "black", "linewidth": 1.2, "zorder": 1}
    points = {"linestyle": "none", "markevery": None, "fillstyle": "none"}
    batches = list(results.student)
    shown = {
        B: style(i) for i, B in enumerate(batches[:: -(-len(batches) // 4)])
    }  # a subset, since a plot of all curves would be unreadable

    for B, look in shown.items():
        student = results.student[B]
        steps, dots = np.arange(1, len(student.at_best_rate)), {**look, **points, "label": f"B = {B}"}
        curves.plot(B * steps, student.law.curve(1.0, student.law.best_rate, steps), color=look["color"], linewidth=1.2)
        at = np.unique(np.geomspace(1, steps[-1], 20).round().astype(int))
        curves.plot(B * at, student.at_best_rate[at].mean(axis=1), **{**dots, "markersize": 4})
        rates = np.linspace(0, 1.05 * student.law.stability_limit, 100)
        factors.plot(rates / B, student.law.factor(rates), color=look["color"], linewidth=1.2)
        means, errors = np.transpose([mean_and_error(after) for after in student.errors[:, 1]])
        factors.errorbar(_tried(student.law) / B, means, errors, **dots)
    curves.set(xscale="log", yscale="log", xlabel="examples seen", ylabel="squared error ‖Δ‖², in parts of the first")
    curves.set(title="linear student at its best rate: dots measured, lines law")
    factors.axhline(1, color="#888888", linewidth=1, linestyle=":")
    factors.set(xlabel="learning rate of the sum over B examples", ylabel="‖Δ′‖² / ‖Δ‖² after one step")
    factors.set(title="linear student, one step", xlim=(0, None))

    every = np.geomspace(batches[0], batches[-1], 100)
    recursions = [student_teacher.backprop(config.inputs, batch=B) for B in every]
    needed.plot(every, [_examples(one, B) for one, B in zip(recursions, every, strict=True)], **law, label="law")
    taken = [B * _crossed(student) for B, student in results.student.items()]
    needed.plot(batches, taken, **{**style(2), **points}, label="measured")
    needed.axvline(config.inputs + 1, color="#888888", linewidth=1, linestyle=":", label="N + 1, inputs and 1 more")
    needed.set(ylabel="examples to 1/1000 of the error", title="linear student: examples needed")
    needed.legend(frameon=False)

    for B, look in shown.items():
        loss = results.network[B].loss
        best = config.rates.index(row(B, results, config)["rate"])
        band(test, results.examples, loss["test"][best].T, look, f"B = {B}")
        updates = first_at_most(config.target, loss["validation"], results.examples)
        reached = np.flatnonzero(np.isfinite(updates).all(axis=1))
        band(by_rate, np.array(config.rates)[reached], updates[reached], {**look, "markevery": None}, f"B = {B}")
    test.axhline(config.target, color="#888888", linewidth=1, linestyle=":", zorder=1)
    test.set(xscale="log", yscale="log", xlabel="examples seen", ylabel="test loss (nats)")
    test.set(title="network, each at the rate that validation chose")
    by_rate.set(xscale="log", yscale="log", xlabel="learning rate of the sum over B examples")
    by_rate.set(
        ylabel=f"examples to a validation loss of {config.target:g}", title="network, at all rates that get there"
    )
    examples = np.array([row(B, results, config)["examples"] for B in batches])
    reached = np.flatnonzero(np.isfinite(examples).all(axis=1))
    band(by_batch, np.array(batches)[reached], examples[reached], {**style(3), "markevery": None}, "test")
    by_batch.set(ylabel=f"examples to a test loss of {config.target:g}", title="network: examples needed")
    for panel in (needed, by_batch):
        panel.set(xscale="log", yscale="log", xlabel="B, examples a step")
    canvas.legend(*test.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle(f"Single examples against minibatches: a linear student of {config.inputs} inputs, and a network")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.minibatch")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
