"""Which random adapters stand beside the trained ones: one of each rank, and two where there is one rank."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import RANDOM


@dataclass(frozen=True)
class RandomDraw:
    """One random adapter."""

    name: str
    like: AdapterRef
    """The trained adapter that it is made from, and whose strength it has."""
    seed: int
    """Of its singular vectors: the same for all studies, so that nobody draws until a control pleases."""


def random_ranks(ranks: Sequence[int]) -> list[int]:
    """The ranks of the random adapters beside trained ones of these ranks, in order."""
    each = sorted(set(ranks))
    return each * 2 if len(each) == 1 else each


def random_names(ranks: Sequence[int]) -> list[str]:
    """Names of random adapters of these ranks, in the same order."""
    each = random_ranks(ranks)
    names = [
        f"{RANDOM}-r{rank}" + (f"-{i + 1}" if len(set(each)) == 1 else "") for i, rank in enumerate(each)
    ]
    return [RANDOM, *names[1:]] if each else []


def random_draws(adapters: Sequence[AdapterRef]) -> list[RandomDraw]:
    """The random adapters of a study, in order.

    Each is made from an adapter of its rank, ties by content, so that it stays the same in whatever order
    adapters are given and when one of a larger rank is added.
    """
    ranks = [a.rank for a in adapters]
    draws: list[RandomDraw] = []
    for rank, name in zip(random_ranks(ranks), random_names(ranks), strict=True):
        like = min((a for a in adapters if a.rank == rank), key=lambda a: a.digest)
        draws.append(RandomDraw(name, like, sum(x.like == like for x in draws)))
    return draws
