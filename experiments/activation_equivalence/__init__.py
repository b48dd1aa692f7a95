"""Compares sigmoid networks with the equal tanh networks they convert to (seed 000), and how each learns."""
