"""Clips: frames of one plane over time, in whatever file they come."""
