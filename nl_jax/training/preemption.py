"""Handles Ctrl-C and SIGTERM between dispatches."""

import contextlib
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

    It must be called by all processes alike.
    """
    with _noted(signal.SIGTERM) as came:

        def came_to_any() -> bool:
            return came() if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(came())))

        yield came_to_any


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C during the block raises at its end."""
    with _noted(signal.SIGINT):
        yield


@contextlib.contextmanager
def _noted(number: int) -> Iterator[Callable[[], bool]]:
    """A function that says whether a signal has come since the block was entered.

    The handler that was there before is put back at the block's end; if the block ends without an error, a signal that
    came is sent again, to that handler. Python lets only the main thread set handlers: in others the signal is left as
    it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False

    def note(number: int, frame: Any) -> None:
        del number, frame
        nonlocal came
        came = True

    before = signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)  # None: not set from Python
    if came:
        signal.raise_signal(number)
