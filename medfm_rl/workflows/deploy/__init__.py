"""`medfm-rl predict`, `score`, `correct` and `choose`: an adapted segmenter at work."""
