"""Figures of dictionaries and deltas: pure functions, each with its null."""
