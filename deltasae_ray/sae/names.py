"""Names of architectures and the smallest automatic size, where configuration can read them without torch."""

from typing import Literal

Architecture = Literal["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard"]
"""SAELens' names of the architectures that can be trained."""
AUTO_FLOOR = 256
"""Latents that a dictionary of automatic size has at least: deltas that live in three massive coordinates
would otherwise get 50."""
