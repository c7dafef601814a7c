"""`medfm-rl calibrate` and `calibrate-correction`: what scores and corrections may promise."""
