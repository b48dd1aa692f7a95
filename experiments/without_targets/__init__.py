"""The ladder: one small layer of features, learned with more and more supervision, from none to the full error."""
