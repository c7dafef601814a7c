"""A run of `adapt`: its folder, what it was started with, what it made, and who it is."""
