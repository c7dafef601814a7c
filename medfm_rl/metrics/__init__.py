"""How good segmentations and their predicted qualities are, in NumPy."""
