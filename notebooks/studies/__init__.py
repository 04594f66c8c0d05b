"""The experiments behind the numbers: studies, training of the shipped weights, benchmarks, results."""
