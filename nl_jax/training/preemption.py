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
    """Yields a function that returns whether any process has received SIGTERM since the block was entered.

    All processes must call it together.
    """
    with _noted(signal.SIGTERM) as came:

        def came_to_any() -> bool:
            return came() if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(came())))

        yield came_to_any


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Delays Ctrl-C: if it is pressed during the block, it raises at the block's end."""
    with _noted(signal.SIGINT):
        yield


@contextlib.contextmanager
def _noted(number: int) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal has been received since the block was entered.

    The previous handler is restored at the block's end. If the block ends without an error, a received signal is sent
    again, to that handler. Python lets only the main thread set handlers; in other threads the signal is not handled.
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
