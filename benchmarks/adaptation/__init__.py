"""Adaptation: against simpler methods, part by part, and on simulated vendors."""
