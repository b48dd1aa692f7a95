"""Learning from noise: the loss is compared with and without a perturbation of weights, nodes or behaviour.

`spaces` says what is perturbed, `directions` how the noise is drawn, `baselines` what a loss is compared with, and
`engine` makes an estimator of the three. The other files are estimators, and what only some of them need.
"""
