"""What a run will need, before and while it is at work: minutes and memory."""
