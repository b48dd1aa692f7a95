"""Measures cells of the atlas in several processes at once, each on its own processor cores."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from experiments.atlas import methods as atlas_methods
from experiments.atlas import tasks as atlas_tasks
from experiments.atlas.cell import Effort, measured


class Order(NamedTuple):
    """A cell to be measured, in a form that can be sent to another process.

    Attributes:
      task: the task's name in `atlas_tasks.TASKS`, or `IMAGES`.
      method: the method's name in `atlas_methods.METHODS`, or module:factory.
      data_dir: the folder of the task `IMAGES`.
      effort: the cell's training budget.
      hours: the time that a cell may take.
    """

    task: str
    method: str
    data_dir: Path | None
    effort: Effort
    hours: float

    @property
    def cell(self) -> str:
        """The cell's name."""
        return f"{self.task}/{self.method}"


IMAGES = "images"


@functools.cache
def task_of(name: str, data_dir: Path | None) -> atlas_tasks.Task:
    """Returns a task by its name, made once per process."""
    if name == IMAGES:
        return atlas_tasks.with_images(data_dir)
    return atlas_tasks.TASKS[name]()


def method_of(name: str) -> atlas_methods.Method:
    """Returns a method by its name, or by module:factory."""
    return atlas_methods.METHODS[name] if name in atlas_methods.METHODS else atlas_methods.of_user(name)


def done(order: Order) -> dict[str, Any]:
    """Measures the cell."""
    return measured(task_of(order.task, order.data_dir), method_of(order.method), order.effort, order.hours)


def all_done(orders: Iterable[Order], processes: int) -> Iterator[tuple[Order, dict[str, Any] | Exception]]:
    """Yields each order with its cell or its exception, in order of completion.

    With `processes=1`, cells run in this process. Several processes divide the machine's cores among themselves where
    the system allows it (Linux), so that they do not affect each other's timings. They end if this process is
    interrupted.
    """
    if processes == 1:
        for order in orders:
            try:
                yield order, done(order)
            except Exception as lost:  # a failing cell must not stop the others
                yield order, lost
        return
    context = multiprocessing.get_context("spawn")
    cores = context.SimpleQueue()
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for i in range(processes):
        cores.put(there[i::processes])
    with ProcessPoolExecutor(processes, context, _on_cores, (cores,)) as pool:
        waiting = {pool.submit(done, order): order for order in orders}
        try:
            for future in as_completed(waiting):
                error = future.exception()
                yield waiting[future], future.result() if error is None else _as_exception(error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _on_cores(cores: Any) -> None:
    """Initialises a new process, before JAX counts the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    if own := cores.get():
        os.sched_setaffinity(0, own)


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
