"""The old place of `nl.require`, for one release."""

import warnings

from nl_jax._core.require import *  # noqa: F403 the old place has the same names

warnings.warn(
    "nl_jax.checks is now nl.require; the old place ends with the next release", DeprecationWarning, stacklevel=2
)
