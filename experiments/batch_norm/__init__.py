"""Trains a deep sigmoid network on digits with and without batch normalisation (seed 001 §5), by two rules."""
