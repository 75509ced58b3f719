"""Figures of decoder rows and subspaces."""
