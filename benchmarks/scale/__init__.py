"""One process beside workers: whether they leave the same, how much faster they are, and what a killed one costs."""
