"""Training runs: `fit` for one, `restarts` for many at once, on one engine, `dispatch`."""
