"""The ways in which a figure of energy is taken: three coordinates may hold most of it, and so may a few
tokens."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # who reads names of figures needs no torch
    from deltasae_ray.metrics.coding.sample import Average

Variant = Literal["", "token_mean", "no_top3", "no_top3_token_mean"]
"""How a figure is taken where it is not taken of all coordinates and over energy; the column `variant` of the
table."""

VARIANTS: "tuple[tuple[str, bool, Average], ...]" = (
    ("", False, "energy"),
    ("_token_mean", False, "token"),
    ("_no_top3", True, "energy"),
    ("_no_top3_token_mean", True, "token"),
)
"""Suffix of a metric, whether the three coordinates of largest variance are left out, and how tokens are
averaged."""
