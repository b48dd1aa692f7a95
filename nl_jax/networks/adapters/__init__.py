"""Models of Flax and Equinox as programs of layers."""
