"""Compares backprop with its relatives from the same Lagrangian: the error of each estimate, and its cost.

python -m experiments.constrained --help
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.constrained.family import EXACT, GROUPS, MEMBERS, SOLVERS, Teaching, predictive_coding
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, judge, verdict
from nl_jax._core.numerics import mean_and_error
from nl_jax.base import Array, Params
from nl_jax.theory import predictive_coding as theory

QUICK = ("backprop", "fixed_prediction", "primal_dual", "predictive_coding", "kolen_pollack")
INFERENCE = 30  # steps of predictive coding in training
MOMENTS = 10  # number of times at which training is evaluated
SETTLED = 2000, 1e-12  # steps and tolerance of inference along μ, enough to measure at its equilibrium
SLOPE, ROUNDING, THEORY = 0.02, 1e-9, 1e-8  # allowed deviations

Failures = tuple[nl.Failure, ...]


@dataclass(frozen=True)
class Config:
    """Compare backprop and its relatives on digits, with one tanh network and half the squared error.

    Measures the error of predictive coding's estimate against its penalty μ, also in a linear network, where theory
    predicts it; the error of the iterative solvers' estimates after K iterations; what networks learn with each
    method, and with each μ; and the angle to the gradient of methods that need no weight transport. Exits with 1 if
    the exact members do not learn as backprop does, the error does not fall as 1/μ, the linear network deviates from
    theory, or a solver does not converge to the gradient. Prints a table and writes config.json, constrained.json,
    constrained.npz, constrained.png and members.png to --out.
    """

    out: Path = Path("results/constrained")
    """Folder for the results; replaces files of an earlier run."""
    members: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(MEMBERS)
    """Members of the family to train with; the default is all of them. Backprop is always included."""
    solvers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(SOLVERS)
    """Iterative solvers to follow; the default is all of them."""
    hidden: tuple[int, ...] = (32, 32)
    """Units of each hidden layer."""
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
    """Penalties μ, in increasing order. The last two must be large: the slope of the error is judged between them."""
    iterations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of iterations K, in increasing order; solvers are judged after the last."""
    updates: int = 600
    """Updates of each member, a multiple of 10."""
    batch_size: int = 50
    """Examples per update; errors of estimates are measured on the same number of examples."""
    learning_rate: float = 0.05
    """Learning rate of gradient descent."""
    decay: float = 0.02
    """Weight decay, multiplied by the learning rate; Kolen and Pollack's feedback needs it to learn."""
    seeds: int = 5
    """Independent networks, trained at once."""
    quick: bool = False
    """Run a small version: 5 members, 3 solvers, 100 updates and 2 seeds, in less than half a minute."""


class Along(NamedTuple):
    """Predictive coding at each μ; arrays are [μ, seeds]."""

    cosine: np.ndarray
    error: np.ndarray
    """Relative error of the estimate to the gradient."""
    linear_error: np.ndarray
    """The same error in a linear network."""
    law: np.ndarray
    """The linear network's error according to theory."""
    missed: np.ndarray
    """Relative difference between the linear network's estimate and that of theory."""
    accuracy: np.ndarray
    """Test accuracy of a network trained with the estimate."""


class Descent(NamedTuple):
    """A solver's inner iterations; arrays are [K, seeds], residuals {layer: [K, seeds]}."""

    error: np.ndarray
    evaluations: np.ndarray
    primal: dict[str, np.ndarray]
    dual: dict[str, np.ndarray]


class Course(NamedTuple):
    """A member's training; arrays are [moments, seeds], degrees {layer: [moments, seeds]}."""

    loss: np.ndarray
    accuracy: np.ndarray
    degrees: dict[str, np.ndarray]


@dataclass
class Results:
    """The measurements so far."""

    along: Along | None = None
    descents: dict[str, Descent] = dataclasses.field(default_factory=dict)
    courses: dict[str, Course] = dataclasses.field(default_factory=dict)

    def deviations(self, config: Config) -> dict[str, float]:
        """Returns the deviations to judge, each in units of its allowed value."""
        found: dict[str, float] = {}
        if self.along is not None:
            decades = np.log(config.penalties[-1] / config.penalties[-2])
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


class Start(NamedTuple):
    """A seed's initial parameters and training batches, the same for all members; stacked by seed."""

    key: Array
    params: Params
    linear: Params
    """Parameters of the linear network."""
    drawn: Array
    """Indices of the training examples, [moments, updates per moment, batch]."""


class Images(NamedTuple):
    """Images and one-hot targets, passed to every program as arguments; as constants they would slow compilation."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]


class Lesson(NamedTuple):
    """The data, network and objective to learn."""

    data: Images
    starts: Start
    network: nl.Network
    objective: Callable[..., Array]
    config: Config

    @property
    def batch(self) -> tuple[Array, Array]:
        """The batch on which errors are measured."""
        return jax.tree.map(lambda x: x[: self.config.batch_size], self.data.train)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of all members."""
        return optax.chain(optax.add_decayed_weights(self.config.decay), optax.sgd(self.config.learning_rate))


def run(config: Config) -> Results:
    """Measures part by part, saving as it goes.

    Raises:
      ExperimentError: if a setting or folder is invalid, an iteration diverges, or a deviation exceeds its limit.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            members=tuple(name for name in config.members if name in QUICK),
            solvers=tuple(name for name in config.solvers if name in QUICK),
            updates=min(config.updates, 100),
            seeds=min(config.seeds, 2),
        )
    digits = data.digits()
    _check(config, len(digits.train.labels))
    pictures = ["constrained.png", "members.png"]
    folder = Folder(config.out, config, outputs=["constrained.json", "constrained.npz", *pictures])
    members = list(dict.fromkeys(("backprop", *config.members)))
    results = Results()
    try:
        with jax.enable_x64(True), tqdm(total=1 + len(config.solvers) + len(members)) as progress:
            lesson = _lesson(config, digits)
            progress.set_description("along μ")
            results.along = _along(lesson)
            progress.update()
            for name in config.solvers:
                progress.set_description(SOLVERS[name].label)
                results.descents[name] = _descend(name, lesson)
                folder.metric(solver=name, **results.descents[name]._asdict())
                progress.update()
            for name in members:
                progress.set_description(MEMBERS[name].label)
                results.courses[name] = _teach(name, lesson)
                folder.metric(member=name, **results.courses[name]._asdict())
                progress.update()
    except FloatingPointError as error:
        raise ExperimentError(str(error)) from error
    finally:  # also after Ctrl-C: show the measurements so far
        if results.along is not None:
            deviations = results.deviations(config)
            folder.arrays("constrained", _arrays(results))
            folder.data("constrained", verdict(deviations)._asdict() | {"deviations": deviations})
            folder.picture("constrained", plot(results, config))
            folder.picture("members", plot_members(results, config))
            print(table(results, config))
            print(f"pictures and data: {folder.path} (*.png, constrained.npz and .json, metrics.jsonl, config.json)")
    judge(results.deviations(config))
    return results


def _check(config: Config, examples: int) -> None:
    for setting, given, known in (("members", config.members, MEMBERS), ("solvers", config.solvers, SOLVERS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ExperimentError(f"unknown {setting[:-1]} {', '.join(unknown)}; there are {', '.join(known)}")
    for setting, numbers in (("penalties", config.penalties), ("iterations", config.iterations)):
        if len(numbers) < 2 or sorted(set(numbers)) != list(numbers) or numbers[0] <= 0:
            raise ExperimentError(f"--{setting} must be two or more rising numbers above 0, got {numbers}")
    if len(config.hidden) < 1 or min(config.hidden) < 1:
        raise ExperimentError(f"--hidden must be one or more numbers of at least 1, got {config.hidden}")
    if config.updates < MOMENTS or config.updates % MOMENTS:
        raise ExperimentError(f"--updates must be a multiple of {MOMENTS}, got {config.updates}")
    for name in ("batch_size", "seeds"):
        if getattr(config, name) < 1:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if config.batch_size > examples:
        raise ExperimentError(f"--batch-size must be at most the {examples} training examples")


def _lesson(config: Config, digits: data.Dataset) -> Lesson:
    train, test = (
        (jnp.asarray(split.images, jnp.float64), jax.nn.one_hot(split.labels, digits.num_classes, dtype=jnp.float64))
        for split in (digits.train, digits.test)
    )
    network = _network(config)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    keys = jax.random.split(jax.random.key(0), config.seeds)
    moments = (config.seeds, MOMENTS, config.updates // MOMENTS, config.batch_size)

    @jax.jit
    @jax.vmap
    def begin(key: Array, drawn: Array) -> Start:
        return Start(key, network.init(key, jnp.float64), _linear(config).init(key, jnp.float64), drawn)

    starts = begin(keys, np.random.default_rng(0).integers(len(train[0]), size=moments))
    return Lesson(Images(train, test), starts, network, objective, config)


def _network(config: Config) -> nl.Network:
    return nl.mlp([64, *config.hidden, 10], activation=nl.activations.tanh())


def _linear(config: Config) -> nl.Network:
    return nl.mlp([64, *config.hidden, 10], activation=nl.activations.identity(), bias=False)


def _estimate(estimator: nl.GradientEstimator, params: Params, batch: Any) -> tuple[Params, nl.Info]:
    key = jax.random.key(0)  # solvers draw no random numbers
    grads, _, info = estimator.estimate(key, estimator.init(key, params), params, batch)
    return grads, info


def _relative(a: Params, b: Params) -> Array:
    return optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b)


def _along(lesson: Lesson) -> Along:
    """Measures predictive coding's estimates at every μ, in tanh and linear networks; then trains with them."""
    linear_objective = nl.supervised(_linear(lesson.config).apply, nl.losses.half_squared_error)

    def equilibrium(params: Params, lesson: Lesson, penalty: Array) -> Array:
        weights = [layer["weight"] for layer in params.values()]
        return jnp.mean(jax.vmap(lambda x, y: theory.equilibrium_energy(weights, x, y, penalty))(*lesson.batch))

    def measure(lesson: Lesson, penalty: Array, start: Start) -> tuple[tuple[Array, ...], Failures]:
        (ours, info), (exact, _), (linear_ours, linear_info), (linear_exact, _) = (
            _estimate(estimator, at, lesson.batch)
            for objective, at in ((lesson.objective, start.params), (linear_objective, start.linear))
            for estimator in (predictive_coding(objective, penalty, *SETTLED), nl.backprop(objective))
        )
        law = jax.grad(equilibrium)(start.linear, lesson, penalty)
        return (
            nl.diagnostics.cosine(ours, exact), _relative(ours, exact), _relative(linear_ours, linear_exact),
            _relative(law, linear_exact), _relative(linear_ours, law),
        ), info.failures + linear_info.failures  # fmt: skip

    def learn(lesson: Lesson, penalty: Array, start: Start) -> tuple[Array, Failures]:
        estimator = predictive_coding(lesson.objective, penalty, INFERENCE)
        state = nl.learner(estimator, lesson.optimizer).init(start.key, start.params)
        (_, accuracy, _), failures = _course(lesson, estimator, start, state)
        return accuracy[-1], failures

    @jax.jit
    def all_of_both(data: Images, starts: Start, penalties: Array) -> tuple[tuple[Array, ...], Failures]:
        at = lesson._replace(data=data)

        def both(penalty: Array, start: Start) -> tuple[tuple[Array, ...], Failures]:
            measured, failures = measure(at, penalty, start)
            accuracy, more_failures = learn(at, penalty, start)
            return (*measured, accuracy), failures + more_failures

        return jax.lax.map(lambda penalty: jax.vmap(functools.partial(both, penalty))(starts), penalties)

    return Along(*_run(all_of_both, lesson.data, lesson.starts, jnp.asarray(lesson.config.penalties)))


def _descend(name: str, lesson: Lesson) -> Descent:
    """Measures a solver's estimate after each number of iterations, in one compiled program."""
    solver = SOLVERS[name]

    @jax.jit
    def follow(data: Images, params: Params, iterations: Array) -> tuple[Any, Failures]:
        batch = lesson._replace(data=data).batch

        def after(k: Array, params: Params, exact: Params) -> tuple[Any, Failures]:
            grads, info = _estimate(solver.make(lesson.objective, k), params, batch)
            primal, dual, _ = info.residuals
            return (_relative(grads, exact), info.evaluations, primal, dual), info.failures

        gradient = nl.backprop(solver.gradient_of(lesson.objective))
        exact = jax.vmap(lambda params: _estimate(gradient, params, batch)[0])(params)
        return jax.lax.map(lambda k: jax.vmap(functools.partial(after, k))(params, exact), iterations)

    return Descent(*_run(follow, lesson.data, lesson.starts.params, jnp.asarray(lesson.config.iterations)))


def _teach(name: str, lesson: Lesson) -> Course:
    """Trains all seeds at once with one member."""
    member = MEMBERS[name]
    estimator = member.make(Teaching(lesson.objective, lesson.optimizer))
    aligned = name in GROUPS["feedback"]

    learner = nl.learner(estimator, lesson.optimizer)

    @jax.jit
    def courses(data: Images, starts: Start, states: nl.LearnerState) -> tuple[Any, Failures]:
        course = functools.partial(_course, answers=member.answers, aligned=aligned)
        return jax.vmap(functools.partial(course, lesson._replace(data=data), estimator))(starts, states)

    # Outside the compiled function: initialising random feedback is slow to compile again for each member.
    begun = jax.vmap(learner.init)(lesson.starts.key, lesson.starts.params)
    found = _run(courses, lesson.data, lesson.starts, begun)
    return Course(*jax.tree.map(lambda x: np.moveaxis(x, 0, -1), found))


def _course(
    lesson: Lesson,
    estimator: nl.GradientEstimator,
    start: Start,
    state: nl.LearnerState,
    *,
    answers: Callable[..., Any] = lambda forward: forward,
    aligned: bool = False,
) -> tuple[tuple[Array, Array, dict[str, Array]], Failures]:
    """Trains one seed; returns training loss, test accuracy and angles, [moments], and the failures."""
    learner = nl.learner(estimator, lesson.optimizer)
    forward, exact = answers(lesson.network.apply), nl.backprop(lesson.objective)

    def update(state: nl.LearnerState, drawn: Array) -> tuple[nl.LearnerState, Failures]:
        key = jax.random.fold_in(start.key, state.step)
        state, info = learner.step(key, state, jax.tree.map(lambda x: x[drawn], lesson.data.train))
        return state, info.failures

    def look(state: nl.LearnerState, drawn: Array) -> tuple[nl.LearnerState, tuple[Any, Failures]]:
        state, failures = jax.lax.scan(update, state, drawn)
        images, targets = lesson.data.test
        correct = jnp.argmax(forward(state.params, images), axis=1) == jnp.argmax(targets, axis=1)
        degrees = {}
        if aligned:
            at = start.key, state.estimator, state.params, lesson.batch
            degrees = nl.diagnostics.alignment(estimator, exact, *at)
        loss = jnp.mean(lesson.objective(state.params, lesson.data.train))
        return state, ((loss, jnp.mean(correct), degrees), failures)

    return jax.lax.scan(look, state, start.drawn)[1]


def _run(compiled: Callable[..., tuple[Any, Failures]], *arguments: Any) -> Any:
    """Runs a compiled function; returns numpy arrays, or raises FloatingPointError for the first failure."""
    found, failures = compiled(*arguments)
    nl.raise_if_failed(failures)
    return jax.tree.map(np.asarray, found)


def _arrays(results: Results) -> dict[str, np.ndarray]:
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


def table(results: Results, config: Config) -> str:
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
        for i, mu in enumerate(config.penalties):
            along = results.along
            accuracy, error = mean_and_error(100 * along.accuracy[i])
            lines.append(
                f"  {f'μ = {mu:g}':38}{f'{accuracy:.2f} ± {error:.2f}':>18}{'':19}"
                f"cosine {along.cosine[i].mean():.4f}, relative error {along.error[i].mean():.1e}"
            )
    deviations = results.deviations(config)
    lines += ["judged, in units of what it may miss by (at most 1):"]
    lines += [f"  {name:58}{off:10.2g}" for name, off in deviations.items()]
    lines += [
        f"± one standard error over {config.seeds} seeds; {config.updates} updates of batch {config.batch_size}, the "
        "same for all.",
        f"largest deviation: {verdict(deviations).largest_deviation:.2g} of what is allowed",
    ]
    return "\n".join(lines)


def plot(results: Results, config: Config) -> Any:
    """Plots results against μ, errors after K iterations, and the residuals of one solver."""
    from experiments.harness.plotting import LINE, band, figure, joined, style

    canvas, ((cosines, errors, accuracies), (by_steps, by_cost, residuals)) = figure(2, 3, size=(15, 8.8))
    mu = np.array(config.penalties)
    if results.along is not None:
        along = results.along
        band(cosines, mu, along.cosine, _dense(style(0)), "predictive coding")
        band(errors, mu, along.error, _dense(style(0)), "tanh network")
        band(errors, mu, along.linear_error, {**_dense(style(2)), "linestyle": "none"}, "linear network")
        theory = joined(mu, {"color": style(2)["color"]})
        errors.plot(mu, along.law.mean(axis=-1), label="its theory (Innocenti et al. 2024)", **theory)
        if len(mu) >= LINE:
            errors.plot(mu[-LINE:], along.error[-1].mean() * mu[-1] / mu[-LINE:] / 2, color="grey", label="slope −1")
        band(accuracies, mu, 100 * along.accuracy, _dense(style(0)), "predictive coding")
    if "backprop" in results.courses:
        exact, error = mean_and_error(100 * results.courses["backprop"].accuracy[-1])
        accuracies.axhline(exact, color=style(3)["color"], linestyle="--", label="backprop")
        accuracies.axhspan(exact - error, exact + error, color=style(3)["color"], alpha=0.15, linewidth=0)
    for axes in (cosines, errors, accuracies):
        axes.set(xscale="log", xlabel="penalty μ")
        axes.legend(frameon=False)
    cosines.set(ylabel="cosine to the gradient", title="predictive coding: the direction of the estimate")
    errors.set(yscale="log", ylabel="relative error", title="its error falls as 1/μ")
    accuracies.set(ylabel="test accuracy (%)", title=f"what {config.updates} updates teach")

    steps = np.array(config.iterations)
    for name, descent in results.descents.items():
        look = _dense(style(list(SOLVERS).index(name)))
        shown = np.maximum(descent.error, 1e-14)  # smaller errors are rounding
        band(by_steps, steps, shown, look, SOLVERS[name].label)
        by_cost.plot(descent.evaluations.mean(axis=-1), shown.mean(axis=-1), **look)
    for axes, of in ((by_steps, "inner iterations K"), (by_cost, "objective evaluations")):
        axes.set(xscale="log", yscale="log", ylim=(1e-10, 2), xlabel=of, ylabel="relative error")
    by_steps.set(title="what an inner iteration buys")
    by_cost.set(title="what an evaluation buys")
    if results.descents:
        by_steps.legend(frameon=False, fontsize="small")
        followed = "primal_dual" if "primal_dual" in results.descents else next(iter(results.descents))
        descent = results.descents[followed]
        for i, layer in enumerate(descent.primal):
            look = {**_dense(style((2, 3, 6, 1)[i % 4])), "linestyle": "-"}
            # residuals are 0 in layers that credit has not reached yet: leave them out of the log plot
            primal, dual = (np.where(of > 1e-12, of, np.nan) for of in (descent.primal[layer], descent.dual[layer]))
            residuals.plot(steps, primal.mean(axis=-1), label=f"{layer}, primal", **look)
            dashed = {**look, "linestyle": "--", "markerfacecolor": "white"}
            residuals.plot(steps, dual.mean(axis=-1), label=f"{layer}, dual", **dashed)
        residuals.legend(frameon=False, ncols=2, fontsize="small")
        residuals.set(title=f"residuals by layer: {SOLVERS[followed].label}")
    residuals.set(xscale="log", yscale="log", xlabel="inner iterations K", ylabel="norm of ∂L/∂λ, ∂L/∂x")
    canvas.suptitle(f"One Lagrangian, many ways to its stationary point: {_network_name(config)} on digits")
    return canvas


def plot_members(results: Results, config: Config) -> Any:
    """Plots the accuracies of all members, and the angles of the feedback methods, layer by layer."""
    from experiments.harness.plotting import band, figure, style

    layers = [f"hidden{l}" for l, _ in enumerate(config.hidden, start=1)]
    canvas, panels = figure(1, 1 + len(layers), size=(6.5 + 4.2 * len(layers), 5.6))
    accuracies, *angles = panels
    row, ticks, headings = 0, {}, []
    for group, members in GROUPS.items():
        here = [name for name in members if name in results.courses]
        if here:
            ticks[row] = group
            headings.append(row)
            row += 1
        for name in here:
            mean, error = mean_and_error(100 * results.courses[name].accuracy[-1])
            accuracies.errorbar(
                [mean], [row], xerr=error if np.isfinite(error) else 0, capsize=3, fmt="o", color="#0072B2"
            )
            ticks[row] = MEMBERS[name].label
            row += 1
    if "backprop" in results.courses:
        accuracies.axvline(100 * results.courses["backprop"].accuracy[-1].mean(), color="#000000", linestyle="--")
    accuracies.set_yticks(list(ticks), list(ticks.values()))
    for tick, at in zip(accuracies.get_yticklabels(), ticks, strict=True):
        tick.set_fontweight("bold" if at in headings else "normal")
    accuracies.grid(visible=False, axis="y")
    accuracies.set(ylim=(row - 0.5, -0.5), xlabel="test accuracy (%)", title=f"after {config.updates} updates")

    update = config.updates // MOMENTS * np.arange(1, MOMENTS + 1)
    feedback = [name for name in GROUPS["feedback"] if name in results.courses]
    for layer, axes in zip(layers, angles, strict=True):
        for name in feedback:
            look = _dense(style(1 + list(GROUPS["feedback"]).index(name)))
            band(axes, update, results.courses[name].degrees[layer], look, MEMBERS[name].label)
        axes.axhline(90, color="grey", linewidth=1)
        axes.set(ylim=(0, 110), xlabel="updates", ylabel="degrees to the gradient", title=f"{layer}: angle to backprop")
    if feedback:
        canvas.legend(*angles[-1].get_legend_handles_labels(), loc="outside lower right", ncols=6, frameon=False)
    canvas.suptitle(f"What the family learns, and how its feedback aligns: {_network_name(config)} on digits")
    return canvas


def _dense(look: Mapping[str, Any]) -> dict[str, Any]:
    return {**look, "markevery": None}


def _network_name(config: Config) -> str:
    return "-".join(map(str, (64, *config.hidden, 10))) + " tanh"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.constrained")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
