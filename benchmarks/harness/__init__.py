"""Shared by all benchmarks: data and shifts, models and settings, and how results are written."""
