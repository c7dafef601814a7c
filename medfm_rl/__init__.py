"""Adapt medical segmenters to new domains without labels, and control their quality."""

__version__ = "0.1.0"
