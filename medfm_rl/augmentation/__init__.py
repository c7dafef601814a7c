"""Random appearances, shapes and views of images."""
