"""Images, masks and data sets on disk, and simulated echo."""
