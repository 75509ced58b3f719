"""What one task does: reads the rows of one adapter and layer once, measures every leaf of them, writes each under its key."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deltasae_ray.diverge.config import DivergeConfig
from deltasae_ray.diverge.leaves import LeafSpec, load_dictionary, settings_of
from deltasae_ray.divergence.context import LayerInputs
from deltasae_ray.divergence.leaf import LeafInputs, compare_layer
from deltasae_ray.divergence.measure import Measure
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.recipe import measure, start_rows
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage


@dataclass(frozen=True)
class Group:
    """Leaves that share their rows and their reference; travels to the task."""

    storage: Storage
    harvest_key: str
    leaves: tuple[LeafSpec, ...]
    keys: tuple[str, ...]
    """Files of their measures, in the same order."""
    cfg: DivergeConfig


def measure_group(group: Group) -> int:
    """Measures and stores every leaf of the group; returns how many."""
    shards = open_harvest(group.storage, group.harvest_key)
    with tempfile.TemporaryDirectory() as scratch:
        inputs, leaves = _inputs(group, shards, Path(scratch))
        found = compare_layer(inputs, leaves, settings_of(group.cfg))
    for spec, key, measures in zip(group.leaves, group.keys, found, strict=True):
        write_measures(group.storage, key, spec, measures)
    return len(found)


def write_measures(storage: Storage, key: str, spec: LeafSpec, measures: dict[str, Measure]) -> None:
    """One file per leaf; that it exists means that it is complete, since writes are atomic."""
    storage.write_json(key, {"leaf": str(spec), "measures": {name: m.to_dict() for name, m in measures.items()}})


def read_measures(storage: Storage, key: str) -> dict[str, Measure]:
    return {name: Measure.from_dict(m) for name, m in storage.read_json(key)["measures"].items()}


def _inputs(group: Group, shards: ShardSet, scratch: Path) -> tuple[LayerInputs, list[LeafInputs]]:
    first = group.leaves[0]
    rows = {split: _rows(shards, first, split) for split in ("fit", "eval")}

    def load(key: str | None) -> Dictionary | None:
        return None if key is None else load_dictionary(group.storage, key, scratch)

    reference = load(first.reference)
    assert reference is not None
    reference = seen_alive(reference, lambda: rows["fit"][1])
    inputs = LayerInputs(
        delta_fit=rows["fit"][0],
        delta_eval=rows["eval"][0],
        base_fit=rows["fit"][1],
        base_eval=rows["eval"][1],
        fit_docs=rows["fit"][2],
        eval_docs=rows["eval"][2],
        reference=reference,
        base_control=load(first.base_control),
        random_deltas=None if first.random_source is None else _random_deltas(shards, first.layer, first.random_source),
    )
    fit = torch.from_numpy(np.ascontiguousarray(inputs.delta_fit))
    scaling, leaves = measure(fit), []
    for spec in group.leaves:
        dictionary = load(spec.dictionary)
        assert dictionary is not None
        halves = load(spec.half_a), load(spec.half_b)
        both = None if halves[0] is None or halves[1] is None else (halves[0], halves[1])
        start = start_rows(fit, scaling, dictionary.d_sae, torch.Generator().manual_seed(spec.seed))
        featureless = load(spec.gaussian), load(spec.frozen_decoder)
        leaves.append(LeafInputs(dictionary, load(spec.second), load(spec.random_adapter), both, *featureless, start))
    return inputs, leaves


def seen_alive(reference: Dictionary, base: Callable[[], np.ndarray]) -> Dictionary:
    """A pretrained dictionary says nothing of its latents: see which of them live on base activations [token, d_model]."""
    return reference.measured(base()) if bool((reference.firing == 1).all()) else reference


def _random_deltas(shards: ShardSet, layer: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and evaluation deltas of the random adapter, of the same tokens as the others."""
    fit, evaluation = (shards.read(layer, source, split=split)[shards.tokens(split).position > 0] for split in ("fit", "eval"))
    return fit, evaluation


def _rows(shards: ShardSet, leaf: LeafSpec, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deltas, base activations and documents of one split, without position 0."""
    tokens = shards.tokens(split)
    keep = tokens.position > 0
    delta, base = (shards.read(leaf.layer, source, split=split)[keep] for source in (leaf.adapter, "base"))
    return delta, base, tokens.doc_id[keep]
