"""A hierarchy that learns by local rules alone, without labels, and classifies images itself."""
