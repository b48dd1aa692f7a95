"""Forward gradients with local losses: with fewer units per loss the gradient is less noisy (Ren et al. 2022)."""
