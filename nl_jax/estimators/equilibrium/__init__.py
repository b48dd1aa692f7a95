"""Learning from networks at rest: equilibrium propagation and contrastive Hebbian learning.

`energy` turns any program of layers into an energy network. `nudges` defines how it is disturbed. `at_equilibrium` is
the program at rest, whose gradient is the reference. `certificate` measures how far an estimate is from it. Each other
file is an estimator.
"""
