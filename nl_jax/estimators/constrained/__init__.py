"""Learning as constrained optimisation: one Lagrangian, solved in many ways (seed 000; LeCun 1988).

`lagrangian` is the function, `solution` turns any way to a point of it into an estimator with a certificate, `KKT`,
and `relaxation` runs those ways that iterate. Each other file is one way.
"""
