"""Masks of formats that say more than an integer for each pixel: names, layers, palettes, and how they were stored."""
