"""`medfm-rl train-judge`: a judge of the masks of a tool, from labelled cases and its masks alone."""
