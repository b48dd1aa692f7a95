"""What the estimators of this folder share: `perturbation` makes one of a space, directions and a baseline.

`sampled_gradient` is its result in weight space, `chunks` and `shares` sum over samples in little memory and on many
devices, `step_size` is the step of a finite difference, `running_mean` a mean of past losses.
"""
