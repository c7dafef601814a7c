"""Damaged and contradictory inputs against every reader, and commands that are killed and called again."""
