"""Compares credit by layer: one step of backprop (seed 001 §2), and four estimators on digits."""
