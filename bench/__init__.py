"""Measurements and the demo: each module says what it measures; results are JSON in bench/results/."""
