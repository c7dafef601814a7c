"""What reviewers and reports said of the target, as a run learns from it."""
