"""Figures of when latents fire."""
