"""Principal components of digits by Hebbian rules: Hebb's diverges, Oja's and Sanger's converge (seed 000)."""
