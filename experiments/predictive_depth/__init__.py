"""Predictive coding in deep networks: inference in axons (activity) and in errors; learning rates at four depths."""
