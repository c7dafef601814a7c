"""`medfm-rl predict`, `score` and `correct`: an adapted segmenter at work."""
