"""Trains every network with every method, all tuned alike (the atlas).

python -m experiments.atlas --help
"""

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.atlas import page as atlas_page
from experiments.atlas.anchors import ANCHORS, BACKPROP, beside_anchor, from_anchors, known
from experiments.atlas.cell import TOO_LONG, Effort
from experiments.atlas.methods import METHODS, Method, of_user
from experiments.atlas.report import table
from experiments.atlas.tasks import TASKS, Task
from experiments.atlas.workers import IMAGES, Order, all_done, task_of
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder, judge, plain, verdict

QUICK_TASKS = ("student_teacher", "digits")
QUICK_METHODS = ("backprop", "node_perturbation", "weight_perturbation", "feedback_alignment")

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")]


@dataclass(frozen=True)
class Config:
    """Train every network with every method, and plot each method's error against its cost.

    Each method gets the same number of trials: Adam at the same learning rates and from the same initialisations.
    Validation examples choose the rate. Prints a table for each task and writes atlas.html, atlas.png, atlas.json
    (backprop beside its known errors) and a file for each cell (one method on one task) to --out. The whole atlas takes
    hours; --resume continues it, cell by cell.
    """

    tasks: Names = tuple(TASKS)
    """Tasks to run; the default is all of them."""
    methods: Names = tuple(METHODS)
    """Methods to run; the default is all of them."""
    estimator: Names = ()
    """Additional methods of your own: module:factory, where factory(objective) makes the estimator. A factory with
    an argument num_samples receives --samples; one with an argument example receives a batch."""
    data_dir: Path | None = None
    """Folder of MNIST-style IDX files, used as an additional task."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Initial learning rates of Adam; each decays to zero as a cosine."""
    seeds: int = 3
    """Number of initialisations at each rate."""
    updates: int | None = None
    """Updates of each run. By default the task sets them: 2,000, or fewer where an update is expensive."""
    samples: int = 16
    """Directions per estimate, for methods that draw random directions."""
    out: Path = Path("results/atlas")
    """Folder for the results."""
    hours: float = 2.0
    """Longest time for a cell, as estimated from the time of a single update. A cell that would take longer is skipped,
    and the page says so. Half of the cells take less than estimated, and nine of ten less than 3.4 times as long."""
    processes: int = 1
    """Number of processes; each measures one cell at a time on its share of the processor's cores."""
    resume: bool = False
    """Measure only the cells that no earlier run finished in --out, and those that had needed more than --hours and no
    longer do. Without it, all chosen cells are measured anew; others in --out are kept either way, and a folder of
    other settings is refused."""
    quick: bool = False
    """Run two small tasks and four methods, in two minutes."""


def run(config: Config) -> dict[str, dict[str, Any]]:
    """Measures all cells, updating the page after each one; returns the cells by "task/method".

    The page, the map and atlas.json show all cells in --out, also those of earlier runs.

    Raises:
      ExperimentError: if a setting is invalid, a cell could not be measured, or backprop misses its known error.
    """
    if config.quick:
        config = dataclasses.replace(
            config, tasks=tuple(x for x in QUICK_TASKS if x in config.tasks),
            methods=tuple(x for x in QUICK_METHODS if x in config.methods),
            rates=config.rates[1::2], seeds=min(config.seeds, 2), updates=config.updates or 200,
            samples=min(config.samples, 8),
        )  # fmt: skip
    tasks, methods = _chosen(config)
    folder = Folder(config.out, config)
    free = "tasks", "methods", "estimator", "data_dir", "processes", "hours"
    finished = Finished(config.out, config, resume=True, but=free, parts="cells")
    efforts = {
        name: Effort(config.rates, config.seeds, config.updates or task.updates, config.samples)
        for name, task in tasks.items()
    }
    orders = [
        Order(task, method, config.data_dir, efforts[task], config.hours)
        for task, method in itertools.product(tasks, methods)
    ]
    todo = [order for order in orders if not (config.resume and _is_done(finished, order))]
    shown = _of_earlier(finished)
    from_anchors(finished)  # unreadable files are errors now, not after hours
    anchored = {name: task for name, task in tasks.items() if task.anchor is not None and BACKPROP in methods}
    anchored = {} if config.quick else anchored
    about = {"rates": len(config.rates), "seeds": config.seeds}
    lost: dict[str, Exception] = {}
    try:
        with tqdm(total=len(orders), initial=len(orders) - len(todo), unit="cell") as bar:
            for order, cell in all_done(todo, config.processes):
                bar.set_postfix_str(order.cell)
                bar.update()
                if isinstance(cell, Exception):
                    lost[order.cell] = cell
                    continue
                finished[order.cell] = {"made by": command(config, order.task, order.method), **plain(cell)}
                shown[order.cell] = finished[order.cell]
                atlas_page.write(config.out, shown, about)
        for name, task in anchored.items():
            cell = shown.get(f"{name}/{BACKPROP}", {})
            part = f"{ANCHORS}/{name}"
            if cell.get("status") == "measured" and not (config.resume and part in finished):
                made_by = {"made by": command(config, name, BACKPROP)}
                try:
                    finished[part] = {**made_by, **beside_anchor(task, cell["rate"], config.seeds)}
                except Exception as failure:  # as of a cell
                    lost[part] = failure
    finally:  # also after Ctrl-C: show the finished cells
        cells = {order.cell: shown[order.cell] for order in orders if order.cell in shown}
        for name, task in tasks.items():
            print(f"\n{task.title}; error: {task.unit}\n{table(cells, name, methods)}")
            if name in anchored and (part := f"{ANCHORS}/{name}") in finished:
                print(known(finished[part]))
        _write(folder, shown, about, judged=from_anchors(finished))
    if lost:
        name, error = next(iter(lost.items()))
        raise ExperimentError(
            f"{len(lost)} of the cells could not be measured, {', '.join(lost)}; {name}: {error!r}; --resume tries "
            "them again"
        )
    if own := from_anchors(finished, anchored):
        judge(own)
    return cells


def _is_done(finished: Finished, order: Order) -> bool:
    """Returns whether nothing is left to measure: a cell that took too long is due when it is given the time."""
    if order.cell not in finished:
        return False
    cell = finished[order.cell]
    return cell["status"] != TOO_LONG or cell["hours"] > order.hours


def _of_earlier(finished: Finished) -> dict[str, Any]:
    """Returns all finished cells of the run's folder; those that cannot be read are left out with a line."""
    cells = {}
    for name in finished:
        task, method = atlas_page.task_and_method(name)
        if method and task != ANCHORS:
            try:
                cell = finished[name]
                if not {"status", "task", "family"} <= cell.keys():
                    raise ExperimentError("it is no cell of this version of the atlas; remove it")
                cells[name] = cell
            except ExperimentError as error:
                print(f"not on the page: {name}: {error}")
    return cells


def _write(folder: Folder, cells: Mapping[str, Any], about: Mapping[str, Any], judged: Mapping[str, float]) -> None:
    """Writes the page, the map and the verdict."""
    atlas_page.write(folder.path, cells, about)
    if any(cell["status"] == "measured" for cell in cells.values()):
        folder.picture("atlas", atlas_page.plot(cells))
    else:
        (folder.path / "atlas.png").unlink(missing_ok=True)
    folder.data("atlas", verdict(judged)._asdict() if judged else {})
    print(f"\npage, map and data: {folder.path} (atlas.html, atlas.png, atlas.json, a file for each of the cells/)")


def _chosen(config: Config) -> tuple[dict[str, Task], dict[str, Method]]:
    for name, chosen, there in (("tasks", config.tasks, TASKS), ("methods", config.methods, METHODS)):
        if unknown := [x for x in chosen if x not in there]:
            raise ExperimentError(f"--{name}: there is no {', '.join(unknown)}; there are {', '.join(there)}")
    if not config.hours > 0:
        raise ExperimentError(f"--hours must be positive; got {config.hours}")
    if min(config.updates or 1, config.samples, config.processes, len(config.rates)) < 1 or config.seeds < 2:
        raise ExperimentError(
            "--seeds must be at least 2, --updates, --samples, --processes and the number of --rates at least 1"
        )
    names = config.tasks if config.data_dir is None else (*config.tasks, IMAGES)
    tasks = {name: task_of(name, config.data_dir) for name in names}
    methods = {name: METHODS[name] for name in config.methods}
    methods |= {place: of_user(place) for place in config.estimator}
    return tasks, methods


def command(config: Config, task: str, method: str) -> str:
    """Returns the command that measures one cell alone."""
    changed = [
        f"--{field.name} {' '.join(map(str, np.atleast_1d(getattr(config, field.name))))}"
        for field in dataclasses.fields(Config)
        if field.name in ("rates", "seeds", "updates", "samples", "hours")
        and getattr(config, field.name) != field.default
    ]
    chosen = f"--methods {method}" if method in METHODS else f"--methods backprop --estimator {method}"
    where = f"--tasks {task}" if task in TASKS else f"--data-dir {config.data_dir}"
    return " ".join(["python -m experiments.atlas", where, chosen, *changed])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.atlas")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
