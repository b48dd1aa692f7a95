"""Signals that are acted on between dispatches: Ctrl-C, and SIGTERM, which schedulers send to end a process."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come, to any of the processes, since the block was entered.

    It must be called by all processes alike. The handler that was there before is put back at the block's end; if the
    block ends without an error, a signal that came is sent again, to that handler. Python lets only the main thread
    set handlers: in others SIGTERM is left as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False

    def note(number: int, frame: Any) -> None:
        del number, frame
        nonlocal came
        came = True

    def came_to_any() -> bool:
        return came if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(came))))

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came_to_any
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set from Python
    if came:
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C during the block raises at its end. Only the main thread is interrupted by it, so only there it waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def note(number: int, frame: Any) -> None:
        del number, frame
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if came:
        signal.raise_signal(signal.SIGINT)
