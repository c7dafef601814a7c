"""Simulated ultrasound: one engine for drawn phantoms and for real frames re-simulated as another vendor shows them."""
