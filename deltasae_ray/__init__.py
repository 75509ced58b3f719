"""What did a LoRA adapter add to the model, and can the dictionaries made for the base model see it?

The library needs no Ray: fit a dictionary, open shards, compare geometry, each figure with its null.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltasae_ray.metrics.coding.missing_share import missing_share
    from deltasae_ray.metrics.geometry.cka import linear_cka
    from deltasae_ray.metrics.geometry.matching import max_cosine
    from deltasae_ray.metrics.geometry.subspaces import principal_angles, principal_subspace
    from deltasae_ray.metrics.measure import Measure
    from deltasae_ray.metrics.visibility.answer import LatentVisibility, Visibility
    from deltasae_ray.metrics.visibility.pooled import pooled_missing_share
    from deltasae_ray.metrics.visibility.visible import visibility
    from deltasae_ray.models.local import ModuleDelta, module_deltas
    from deltasae_ray.sae.dictionary import Dictionary
    from deltasae_ray.sae.fitting import fit_dictionary
    from deltasae_ray.shards.opening import open_shards
    from deltasae_ray.shards.reader import ShardSet
    from deltasae_ray.study.notebook import Study

_HOMES = {
    "Dictionary": "sae.dictionary",
    "LatentVisibility": "metrics.visibility.answer",
    "Measure": "metrics.measure",
    "ModuleDelta": "models.local",
    "ShardSet": "shards.reader",
    "Study": "study.notebook",
    "Visibility": "metrics.visibility.answer",
    "fit_dictionary": "sae.fitting",
    "linear_cka": "metrics.geometry.cka",
    "max_cosine": "metrics.geometry.matching",
    "missing_share": "metrics.coding.missing_share",
    "module_deltas": "models.local",
    "open_shards": "shards.opening",
    "pooled_missing_share": "metrics.visibility.pooled",
    "principal_angles": "metrics.geometry.subspaces",
    "principal_subspace": "metrics.geometry.subspaces",
    "visibility": "metrics.visibility.visible",
}

__all__ = [  # noqa: F822 - loaded on first use, so that importing the package imports no torch
    "Dictionary",
    "LatentVisibility",
    "Measure",
    "ModuleDelta",
    "ShardSet",
    "Study",
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
