"""`medfm-rl propose`: which patients to review next."""
