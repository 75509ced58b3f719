"""Names by which dictionaries are asked for, and the smallest automatic size: read without torch."""

from typing import Literal

Architecture = Literal["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard"]
"""SAELens' names of the architectures that can be trained."""
Documents = Literal["all", "A", "B", "search", "1of3", "2of3", "3of3"]
"""Training documents: all, one of two halves, one of three thirds (study/reference.py), or four fifths of
them, whose dictionaries are judged on the last fifth (study/search.py)."""
THIRDS: tuple[Documents, ...] = ("1of3", "2of3", "3of3")
BUILTIN = "builtin:"
"""Begins the name of a reference that comes with the package."""
Featureless = Literal["none", "gaussian", "frozen_decoder"]
"""gaussian: rows drawn from N(μ, Σ) of the source's. frozen_decoder: the decoder stays as it started, at
random."""
AUTO_FLOOR = 256
"""Latents that a dictionary of automatic size has at least: deltas that live in three massive coordinates
would otherwise get 50."""
