"""The perceptron's mistakes and Novikoff's bound; and the exclusive or (seeds 000, 001)."""
