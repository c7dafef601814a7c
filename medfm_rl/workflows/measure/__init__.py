"""`medfm-rl measure`: volumes, ejection fraction and motion from the masks of clips."""
