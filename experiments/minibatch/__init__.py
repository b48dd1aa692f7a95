"""Single examples compared with minibatches, at equal numbers of examples (seed 001 §4)."""
