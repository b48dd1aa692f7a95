"""Which rule trained the network? Posteriors over learning rules from noisy, partly observed changes of weights."""
