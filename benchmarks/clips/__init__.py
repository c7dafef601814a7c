"""Clips: masks over time before and after adaptation, the worst frame, ejection fraction, time and memory."""
