"""Node and weight perturbation in trials of many steps, measured and in theory (Züge et al. 2023)."""
