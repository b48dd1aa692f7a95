"""Training runs: `fit` for one, `restarts` and `sweep` for many at once."""
