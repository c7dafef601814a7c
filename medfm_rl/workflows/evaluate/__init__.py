"""`medfm-rl evaluate`: masks against ground truth."""
