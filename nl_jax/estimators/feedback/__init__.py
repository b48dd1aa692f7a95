"""Estimators that send credit down by separate feedback weights instead of the transposed forward weights.

`weights` says how feedback weights are made and learned, `feedback_path` sends credit through them, and each other file
is an estimator or a part of one.
"""
