"""Local minima of a single sigmoid unit, found from many initialisations and counted by theory (Auer et al. 1996)."""
