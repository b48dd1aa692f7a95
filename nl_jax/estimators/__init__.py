"""Gradient estimators, one per file.

Each family has a folder: `noise`, `lagrangian`, `equilibrium`, `feedback` and `online`. The files beside them are
backprop and what combines or wraps estimators of any family.
"""
