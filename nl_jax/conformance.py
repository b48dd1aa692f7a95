"""The old place of `nl_jax.evaluation.conformance`, for one release."""

import sys
import warnings

from nl_jax.evaluation.conformance import *  # noqa: F403 the old place has the same names
from nl_jax.evaluation.conformance import breadth, calibration, contract, freedom, power, problem  # noqa: F401

warnings.warn(
    "nl_jax.conformance is now nl_jax.evaluation.conformance, or nl.conformance; the old place ends with the next "
    "release",
    DeprecationWarning,
    stacklevel=2,
)

if __name__ == "__main__":
    from nl_jax.evaluation.conformance.__main__ import main

    sys.exit(main())
