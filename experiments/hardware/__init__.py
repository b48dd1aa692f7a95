"""Hardware in the loop: a faulty analogue circuit learns images."""
