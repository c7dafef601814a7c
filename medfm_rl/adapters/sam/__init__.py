"""The SAM family: segmenters that are shown a box for each structure."""
