"""Test error of the linear neuron across the peak at N = D, measured and in theory (seed 000, linear models)."""
