"""Runs the base model and its adapters over text and stores their deltas."""
