"""The grid images x tasks x solvers x seeds: what is computed, where the results lie, and what they say."""
