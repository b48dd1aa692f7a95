"""What an experiment says when it cannot go on: one line and a non-zero exit."""

import sys
from collections.abc import Callable


class ExperimentError(Exception):
    """A failure the user can mend; its text is the one line shown."""


def exit_code(run: Callable[[], object]) -> int:
    """Runs an experiment and turns what stopped it into an exit code: 0, 1 for an error, 130 for Ctrl-C."""
    try:
        run()
    except (ExperimentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what had been written is kept", file=sys.stderr)
        return 130
    return 0
