"""Reads texts, cuts them into contexts, and groups these into units."""
