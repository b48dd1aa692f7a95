"""Measures how a layer's input distribution shifts in training, with and without batch normalisation (seed 001 §5)."""
