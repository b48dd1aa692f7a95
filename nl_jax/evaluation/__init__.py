"""Judges estimators: `diagnostics` of accuracy and cost, the `audit` of locality, and the `conformance` certificate."""
