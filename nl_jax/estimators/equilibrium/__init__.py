"""Learning from networks at rest: equilibrium propagation and contrastive Hebbian learning.

`energy` makes an energy network of any program of layers, `nudges` says how it is disturbed, `at_equilibrium` is the
program at rest, whose gradient is the reference, and `certificate` tells how far an estimate is from it. Each other
file is an estimator.
"""
