"""Writes the page of a study."""
