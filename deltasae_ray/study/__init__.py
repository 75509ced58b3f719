"""Runs the stages of a study in order."""
