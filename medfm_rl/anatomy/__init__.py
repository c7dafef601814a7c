"""Declarative rules of what a plausible mask looks like, and the profiles that hold them."""
