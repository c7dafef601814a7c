"""`medfm-rl train-source`: a segmenter for those who have none yet."""
