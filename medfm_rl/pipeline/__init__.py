"""The loop and what surrounds it: train a source model, adapt, select, evaluate, predict, demo."""
