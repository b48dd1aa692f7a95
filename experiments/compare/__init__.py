"""Trains one network on the same images with different estimators of the same gradient."""
