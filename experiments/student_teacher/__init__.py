"""Learning curves and best rates of backprop, node and weight perturbation (seed 000; Werfel, Xie & Seung 2004)."""
