"""Layers, connections between them, and networks made of both (seed 003 §1)."""
