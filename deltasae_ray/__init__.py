"""What did a LoRA adapter add to the model, and can the dictionaries made for the base model see it?

The library needs no Ray: fit a dictionary, open shards, compare geometry, each figure with its null.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltasae_ray.divergence.cka import linear_cka
    from deltasae_ray.divergence.matching import max_cosine
    from deltasae_ray.divergence.measure import Measure
    from deltasae_ray.divergence.missing import missing_share
    from deltasae_ray.divergence.subspaces import principal_angles, principal_subspace
    from deltasae_ray.models.local import ModuleDelta, module_deltas
    from deltasae_ray.sae.dictionary import Dictionary
    from deltasae_ray.sae.fitting import fit_dictionary
    from deltasae_ray.shards.opening import open_shards
    from deltasae_ray.shards.reader import ShardSet
    from deltasae_ray.visibility.answer import LatentVisibility, Visibility
    from deltasae_ray.visibility.pooled import pooled_missing_share
    from deltasae_ray.visibility.visible import visibility

_HOMES = {
    "Dictionary": "sae.dictionary",
    "LatentVisibility": "visibility.answer",
    "Measure": "divergence.measure",
    "ModuleDelta": "models.local",
    "ShardSet": "shards.reader",
    "Visibility": "visibility.answer",
    "fit_dictionary": "sae.fitting",
    "linear_cka": "divergence.cka",
    "max_cosine": "divergence.matching",
    "missing_share": "divergence.missing",
    "module_deltas": "models.local",
    "open_shards": "shards.opening",
    "pooled_missing_share": "visibility.pooled",
    "principal_angles": "divergence.subspaces",
    "principal_subspace": "divergence.subspaces",
    "visibility": "visibility.visible",
}

__all__ = [  # noqa: F822 - loaded on first use, so that importing the package imports no torch
    "Dictionary",
    "LatentVisibility",
    "Measure",
    "ModuleDelta",
    "ShardSet",
    "Visibility",
    "fit_dictionary",
    "linear_cka",
    "max_cosine",
    "missing_share",
    "module_deltas",
    "open_shards",
    "pooled_missing_share",
    "principal_angles",
    "principal_subspace",
    "visibility",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"deltasae_ray has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"deltasae_ray.{_HOMES[name]}"), name)
