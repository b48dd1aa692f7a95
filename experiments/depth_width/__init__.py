"""Compares depth with width at equal numbers of parameters (seed 001: how many layers, and how many nodes)."""
