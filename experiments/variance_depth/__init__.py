"""Variance of weight and node perturbation against depth in nonlinear networks (seed 000, which of them scales)."""
