"""The commands that a person gives, step by step."""
