"""Fits dictionaries to stored rows with Ray Train."""
