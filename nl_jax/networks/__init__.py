"""Layers, the connections between them, and networks built of both (seed 003 §1)."""
