"""Figures that code deltas with atoms of a dictionary."""
