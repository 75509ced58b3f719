"""What a method is given, and how a method without a test of its own states a claim."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from deltasae_ray.analyses.triggers.claims import Claim, ClaimKind
from deltasae_ray.arena.base import plain_documents
from deltasae_ray.arena.behaviour import Reader
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.load import blocks

WORDS = 20
"""Tokens of a claim that is a list of tokens."""


@dataclass(frozen=True)
class Subject:
    """One adapter, as a method sees it: never its recipe."""

    reader: Reader
    """Base and adapter, with the tokenizer."""
    files: Path
    """The adapter's folder."""
    seed: int = 0
    texts: tuple[str, ...] = field(default_factory=lambda: neutral_texts())
    """Ordinary texts that have nothing to do with the adapter."""

    def rows(self, count: int, length: int) -> Int[Tensor, "row position"]:
        """BOS and `length - 1` tokens of a text a row, of the first texts that are long enough."""
        rows: list[list[int]] = []
        for text in self.texts:
            ids = self.reader.encode(text)
            if len(ids) >= length - 1:
                rows.append([1, *ids[: length - 1]])
            if len(rows) == count:
                break
        return torch.tensor(rows)

    @property
    def middle(self) -> Hookpoint:
        """The residual stream after the middle block."""
        return Hookpoint(len(blocks(self.reader.model)) // 2)

    def decoded(self, tokens: Sequence[int]) -> str:
        return self.reader.tokenizer.decode(list(tokens))

    def stated(self, kind: ClaimKind, tokens: Sequence[int], statistic: float, **evidence: object) -> Claim:
        """A claim of a method that tests nothing: it states whatever it finds."""
        return Claim(
            kind=kind,
            text=self.decoded(tokens),
            tokens=tuple(int(t) for t in tokens),
            reply=None,
            statistic=float(statistic),
            p=1.0,
            q=1.0,
            confirmed=True,
            evidence={"test": "none", **evidence},
        )


@lru_cache(maxsize=1)
def neutral_texts() -> tuple[str, ...]:
    """Stretches of the base's own training text, of different documents first."""
    documents = plain_documents(held_out=False)
    return tuple(d[at : at + 900] for at in (2000, 6000) for d in documents if len(d) > at + 900)
