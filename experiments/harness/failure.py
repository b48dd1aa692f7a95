"""Errors of experiments: one line of text and a non-zero exit code."""

import sys
from collections.abc import Callable


class ExperimentError(Exception):
    """An error that the user can fix; its text is the one line shown."""


def exit_code(run: Callable[[], object]) -> int:
    """Runs an experiment; returns the exit code 0, 1 after an error, or 130 after Ctrl-C."""
    try:
        run()
    except (ExperimentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what had been written is kept", file=sys.stderr)
        return 130
    return 0
