"""Surfaces and gradients of the losses of seed 003: p-norms, Kullback–Leibler, normalised (eq. 13–18)."""
