"""Figures, each drawn from a frame."""
