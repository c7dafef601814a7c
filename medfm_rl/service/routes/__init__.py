"""What the service answers, by the part of it that is asked."""
