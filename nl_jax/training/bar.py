"""A progress bar, if tqdm is installed."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def bar(total: int, done: int, wanted: bool | None) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Yields `show(new steps, figures)`, which updates a tqdm bar; with `wanted` None, only if tqdm is installed."""
    if not (importlib.util.find_spec("tqdm") is not None if wanted is None else wanted):
        yield lambda steps, figures: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False") from error
    with tqdm(total=total, initial=done, unit="step") as shown:

        def show(steps: int, figures: Mapping[str, Any]) -> None:
            shown.set_postfix(figures, refresh=False)
            shown.update(steps)

        yield show
