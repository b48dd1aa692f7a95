"""Cells of the atlas by several processes at once, each on processor cores of its own."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from experiments import atlas_methods, atlas_tasks
from experiments.atlas_cell import Effort, measured


class Order(NamedTuple):
    """A cell to be measured, in words that another process understands.

    Attributes:
      task: its name in `atlas_tasks.TASKS`, or `IMAGES`.
      method: its name in `atlas_methods.METHODS`, or module:factory.
      data_dir: where `IMAGES` are.
    """

    task: str
    method: str
    data_dir: Path | None
    effort: Effort

    @property
    def cell(self) -> str:
        """The cell's name."""
        return f"{self.task}/{self.method}"


IMAGES = "images"


@functools.cache
def task_of(name: str, data_dir: Path | None) -> atlas_tasks.Task:
    """A task by its name, made once in a process."""
    if name == IMAGES:
        return atlas_tasks.with_images(data_dir)
    return atlas_tasks.TASKS[name]()


def method_of(name: str) -> atlas_methods.Method:
    """A method by its name, or module:factory."""
    return atlas_methods.METHODS[name] if name in atlas_methods.METHODS else atlas_methods.of_user(name)


def done(order: Order) -> dict[str, Any]:
    """The cell."""
    return measured(task_of(order.task, order.data_dir), method_of(order.method), order.effort)


def all_done(orders: Iterable[Order], processes: int) -> Iterator[tuple[Order, dict[str, Any] | Exception]]:
    """Each order with its cell or what went wrong with it, in the order in which they are done.

    One process is this one. Several share out the machine's cores where the system can tell them to (Linux), so that
    the seconds of one do not depend on what the others do; if this one is interrupted they end.
    """
    if processes == 1:
        for order in orders:
            try:
                yield order, done(order)
            except Exception as lost:  # a cell must not take all others with it
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
    """What a new process begins with, before JAX counts the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says when to end
    if own := cores.get():
        os.sched_setaffinity(0, own)


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
