"""What one task does: reads the rows of one adapter and layer once, measures every leaf of them, writes each
under its key."""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.figures import compare_leaves
from deltasae_ray.analyses.divergence.layer_figures import layer_measures
from deltasae_ray.analyses.leaf_spec import LeafSpec, load_dictionary, settings_of
from deltasae_ray.errors import StorageError
from deltasae_ray.metrics.adapter_layer import AdapterLayer
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.inputs import LayerRows, LeafInputs
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.identity import BASE
from deltasae_ray.sae.recipe import measure
from deltasae_ray.sae.start import start_rows
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage


@dataclass(frozen=True)
class Group:
    """Leaves that share their rows; travels to the task."""

    storage: Storage
    harvest_key: str
    leaves: tuple[LeafSpec, ...]
    keys: tuple[str, ...]
    """Files of their measures, in the same order."""
    cfg: DivergeConfig


def measure_group(group: Group) -> int:
    """Measures and stores every leaf of the group, those of one reference after the other; returns how
    many."""
    shards = open_harvest(group.storage, group.harvest_key)
    rows = read_rows(shards, group.leaves[0])
    layer = AdapterLayer(rows, settings_of(group.cfg))
    of_layer, start = layer_measures(layer), _starts(rows)
    together: dict[tuple, list[int]] = defaultdict(list)
    for i, leaf in enumerate(group.leaves):
        together[leaf.reference, leaf.control("base_control")].append(i)
    for (reference, control), places in together.items():
        with tempfile.TemporaryDirectory() as scratch:
            load = cache(partial(load_dictionary, group.storage, scratch=Path(scratch)))
            known = seen_alive(load(reference), lambda: rows.base_fit)
            context = Context(layer, known, None if control is None else load(control))
            leaves = [_leaf(group.leaves[i], load, start) for i in places]
        for i, measures in zip(places, compare_leaves(context, leaves, of_layer), strict=True):
            write_measures(group.storage, group.keys[i], group.leaves[i], measures)
    return len(group.leaves)


def write_measures(storage: Storage, key: str, spec: LeafSpec, measures: dict[str, Measure]) -> None:
    """One file per leaf; that it exists means that it is complete, since writes are atomic."""
    storage.write_json(
        key, {"leaf": str(spec), "measures": {name: m.to_dict() for name, m in measures.items()}}
    )


def read_measures(storage: Storage, key: str) -> dict[str, Measure]:
    """Name → measure, as `write_measures` stored them.

    Raises:
        StorageError: the file is damaged.
    """
    try:
        return msgspec.convert(storage.read_json(key)["measures"], dict[str, Measure])
    except (msgspec.ValidationError, KeyError, TypeError, AssertionError) as e:
        raise StorageError(f"{storage.path(key)} holds no measures ({e!r}): delete it and run again") from e


def _starts(rows: LayerRows) -> Callable[[int, int], Float[Tensor, "latent d_model"]]:
    """(d_sae, seed) → the decoder of a dictionary of these deltas at its start."""
    fit = torch.from_numpy(np.ascontiguousarray(rows.delta_fit))
    scaling = measure(fit)
    return lambda d_sae, seed: start_rows(fit, scaling, d_sae, torch.Generator().manual_seed(seed))


def _leaf(
    spec: LeafSpec,
    load: Callable[[str], Dictionary],
    start: Callable[[int, int], Float[Tensor, "latent d_model"]],
) -> LeafInputs:
    own = load(spec.dictionary)
    beside = {role: load(key) for role, key in spec.beside if role != "base_control"}
    return LeafInputs(own, beside, start(own.d_sae, spec.seed))


def seen_alive(reference: Dictionary, base: Callable[[], np.ndarray]) -> Dictionary:
    """A pretrained dictionary says nothing of its latents: see which of them live on base activations [token,
    d_model]."""
    return reference.measured(base()) if bool((reference.firing == 1).all()) else reference


def read_rows(shards: ShardSet, leaf: LeafSpec) -> LayerRows:
    """Deltas, base activations and documents of a leaf's adapter and layer, without position 0."""
    tokens = {split: shards.tokens(split) for split in ("fit", "eval")}
    keep = {split: t.used for split, t in tokens.items()}

    def read(source: str) -> tuple[np.ndarray, np.ndarray]:
        fit, evaluation = (
            shards.read(leaf.layer, source, split=split)[keep[split]] for split in ("fit", "eval")
        )
        return fit, evaluation

    docs = (tokens[split].doc_id[keep[split]] for split in ("fit", "eval"))
    return LayerRows(*read(leaf.adapter), *read(BASE), *docs)
