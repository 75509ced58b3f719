"""Names of architectures, where configuration can read them without torch."""

from typing import Literal

Architecture = Literal["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard"]
"""SAELens' names of the architectures that can be trained."""
