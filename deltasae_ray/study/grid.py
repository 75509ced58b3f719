"""What is fitted: the base dictionaries and the random-LoRA control once per study and shape, then the grid of trials."""

from collections.abc import Sequence
from itertools import product
from typing import Literal

from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import Documents, FitPoint
from deltasae_ray.harvest.prepare import RANDOM
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.capture import BASE
from deltasae_ray.sae.identity import Shape, Trial

REFERENCE_SEED, CONTROL_SEED = 1000, 1001
"""Apart from every seed of the grid: dictionaries of one seed start from the same rows, and would match for that alone (decoders before
training at a mean max-cosine of .79, where chance is .39)."""
HALF_SEEDS: dict[Literal["A", "B"], int] = {"A": 1002, "B": 1003}
"""Likewise of the dictionaries of two halves of the documents, which are matched with each other."""


def grid_points(trial: Trial, layers: Sequence[int], seeds: int) -> list[FitPoint]:
    """The dictionaries of a trial: its layers and seeds share one read of the shards."""
    return [FitPoint(trial.adapter, layer, *trial.shape, seed=seed) for layer in layers for seed in range(seeds)]


def trials(adapters: Sequence[AdapterRef], fit: FitConfig) -> list[Trial]:
    """adapters × d_sae × k × architecture, in that order."""
    names = [a.name for a in adapters if a.kind == "adapter"]
    return [Trial(name, *shape) for name, shape in product(names, shapes(fit))]


def shapes(fit: FitConfig) -> list[Shape]:
    """Every shape of the grid, by size, k and architecture in that order."""
    return [Shape(*shape) for shape in product(fit.sizes, fit.k, fit.architecture)]


def base_points(layers: Sequence[int], fit: FitConfig, *, toy_reference: bool) -> list[FitPoint]:
    """Dictionaries of base activations for every shape of the grid: the control on documents B and, where none is given, the reference
    on documents A. Each shape has its own, so that a size which is added later moves no figure of the others."""
    made: list[tuple[int, Documents]] = [(CONTROL_SEED, "B")]
    if toy_reference:
        made.append((REFERENCE_SEED, "A"))
    chosen = product(made, shapes(fit), layers)
    return [FitPoint(BASE, layer, *shape, seed=seed, documents=documents) for (seed, documents), shape, layer in chosen]


def random_points(layers: Sequence[int], fit: FitConfig, adapters: Sequence[AdapterRef]) -> list[FitPoint]:
    """Dictionaries of the random adapter's deltas, by the same recipe; none where it was not harvested."""
    if all(a.kind != "random" for a in adapters):
        return []
    return [point for shape in shapes(fit) for point in grid_points(Trial(RANDOM, *shape), layers, 1)]
