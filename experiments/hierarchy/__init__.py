"""A hierarchy that learns by local rules alone, without labels, and answers for itself."""
