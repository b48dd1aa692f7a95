"""Gradient estimators, one per file, and their shared parts.

`perturbation` builds every perturbation estimator from `spaces` (where noise acts), `directions` (which noise),
`baselines` (which loss difference) and `sampling` (how many samples, in which chunks).
"""
