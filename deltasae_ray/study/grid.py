"""The grid of trials and their dictionaries."""

from collections.abc import Sequence
from itertools import product

from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import Shape, Trial


def grid_points(trial: Trial, layers: Sequence[int], seeds: int) -> list[FitPoint]:
    """The dictionaries of a trial: its layers and seeds share one read of the shards."""
    return [
        FitPoint(trial.adapter, layer, *trial.shape, seed=seed) for layer in layers for seed in range(seeds)
    ]


def trials(adapters: Sequence[AdapterRef], fit: FitConfig) -> list[Trial]:
    """adapters × d_sae × k × architecture, in that order."""
    names = [a.name for a in adapters if a.kind == "adapter"]
    return [Trial(name, *shape) for name, shape in product(names, shapes(fit))]


def shapes(fit: FitConfig) -> list[Shape]:
    """Every shape of the grid, by size, k and architecture in that order."""
    return [Shape(*shape) for shape in product(fit.sizes, fit.k, fit.architecture)]
