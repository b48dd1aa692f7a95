"""Compares backprop with its relatives from the same Lagrangian: the error of each estimate, and its cost."""
