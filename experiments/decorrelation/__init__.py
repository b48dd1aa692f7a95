"""Tests whether decorrelated inputs bring node perturbation nearer to backprop (Dalm et al. 2023)."""
