"""Closed forms that learning is measured against: one paper a file, nothing of nl_jax in them."""
