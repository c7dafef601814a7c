"""Adaptation in 3-D between two hospitals, on cardiac MR in short axis."""
