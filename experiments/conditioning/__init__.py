"""Measures how the mean and variance of inputs affect the learning speed of linear units and networks (seed 001 §5)."""
