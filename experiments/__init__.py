"""Experiments: one script per figure, `python -m experiments.NAME`, with a frozen config, `run(config)` and a plot.

Figures are PNG files; NL_JAX_FIGURES="pdf svg" in the environment writes those formats beside them.
"""
