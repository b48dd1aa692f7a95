"""Compares the learning curves of the modes of deep linear networks with theory (Saxe et al. 2014)."""
