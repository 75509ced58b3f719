"""The ways in which a figure of energy is taken: three coordinates may hold most of it, and so may a few tokens."""

from deltasae_ray.metrics.coding.sample import Average

VARIANTS: tuple[tuple[str, bool, Average], ...] = (
    ("", False, "energy"),
    ("_token_mean", False, "token"),
    ("_no_top3", True, "energy"),
    ("_no_top3_token_mean", True, "token"),
)
"""Suffix of a metric, whether the three coordinates of largest variance are left out, and how tokens are averaged."""
