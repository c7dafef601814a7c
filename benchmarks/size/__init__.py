"""Memory, disk and time against the size of images and the number of cases."""
