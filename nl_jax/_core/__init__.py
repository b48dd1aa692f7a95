"""What every room uses: checks of arguments, paths of parameters, sums, failures, dependence and lazy weights."""
