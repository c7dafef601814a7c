"""A data set and what is in it, before anything is trained or scored."""
