"""Screens an adapter by the directions that its weights write."""
