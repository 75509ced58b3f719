"""Sparse autoencoders: training, opening, saving."""
