"""Continuous functions fitted by one hidden layer of more and more sigmoid units (seed 001; Hornik 1991)."""
