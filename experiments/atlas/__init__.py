"""Trains every network with every method, all tuned alike (the atlas)."""
