"""Gradient estimators, one per file, and their shared parts.

`spaces` (where noise acts), `directions` (what noise), `baselines` (what difference is taken) and
`sampling` (how many, in what chunks) combine in `perturbation` to every perturbation estimator.
"""
