"""Runs all experiments in turn and writes a page with their results."""
