"""Online learning: credit in a loop over time, carried forward instead of backward."""
