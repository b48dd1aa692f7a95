"""Learning as constrained optimisation: one Lagrangian, solved in many ways (seed 000; LeCun 1988).

`lagrangian` is the function. `solution` turns any solver into an estimator with a certificate, `KKT`. `relaxation` runs
the iterative solvers. The other files are solvers and their parts.
"""
