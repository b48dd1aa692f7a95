"""What experiments and benchmarks share: data, networks, results, figures and failures."""
