"""Two adapters at one layer: how alike their deltas are, and their dictionaries."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.pair_figures import (
    coder_of,
    missing_between,
    similar_deltas,
    similar_dictionaries,
)
from deltasae_ray.analyses.divergence.task import write_measures
from deltasae_ray.analyses.leaf_spec import (
    LeafSpec,
    dictionary_digest,
    figures_digest,
    load_dictionary,
    settings_of,
)
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage


@dataclass(frozen=True)
class PairSpec:
    """Leaves of two adapters that agree in layer, shape and seed."""

    one: LeafSpec
    other: LeafSpec

    @property
    def shared(self) -> tuple:
        """Pairs that agree in this read the same rows."""
        return self.one.adapter, self.other.adapter, self.one.layer

    @property
    def place(self) -> tuple:
        """Layer and shape, in which both agree."""
        return self.one.layer, self.one.shape, self.one.seed

    @property
    def dictionaries(self) -> tuple[str, str, str | None, str | None]:
        """The one's, the other's, and the second seed of each."""
        return (
            self.one.dictionary,
            self.other.dictionary,
            self.one.control("second"),
            self.other.control("second"),
        )


def adapter_pairs(leaves: Sequence[LeafSpec]) -> list[PairSpec]:
    """Every two adapters, at every layer and shape that both have."""
    pairs = (PairSpec(a, b) for a, b in combinations(leaves, 2) if a.adapter != b.adapter)
    return [p for p in pairs if replace(p.one.identity, adapter=p.other.adapter) == p.other.identity]


def pair_key(storage: Storage, shards: ShardSet, pair: PairSpec, cfg: DivergeConfig) -> str:
    """File of the pair's measures, made of the digests of what they depend on."""
    inputs = {
        "sources": [shards.source(leaf.adapter).digest for leaf in (pair.one, pair.other)],
        "dictionaries": [dictionary_digest(storage, key) if key else None for key in pair.dictionaries],
    }
    return f"measures/pair-{figures_digest(shards, pair.one.layer, cfg, inputs)}.json"


@dataclass(frozen=True)
class PairGroup:
    """Pairs of the same two adapters at one layer: their rows are read once. Travels to the task."""

    storage: Storage
    harvest_key: str
    pairs: tuple[PairSpec, ...]
    keys: tuple[str, ...]
    """Files of their measures, in the same order."""
    cfg: DivergeConfig


def measure_pairs(group: PairGroup) -> int:
    """Measures and stores every pair of the group; returns how many."""
    shards, settings = open_harvest(group.storage, group.harvest_key), settings_of(group.cfg)
    first = group.pairs[0]
    tokens = {split: shards.tokens(split) for split in ("fit", "eval")}
    keep = {split: t.used for split, t in tokens.items()}
    training = torch.from_numpy(shards.read(first.one.layer, first.one.adapter, split="fit")[keep["fit"]])
    moments = Moments.of(training)
    deltas = [
        shards.read(leaf.layer, leaf.adapter, split="eval")[keep["eval"]] for leaf in (first.one, first.other)
    ]
    docs = tokens["eval"].doc_id[keep["eval"]]
    alike, coder = (
        similar_deltas(deltas[0], deltas[1], docs, settings),
        coder_of(deltas[0], training, docs, moments, settings),
    )
    for pair, key in zip(group.pairs, group.keys, strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            one, other = (
                load_dictionary(group.storage, leaf.dictionary, Path(scratch))
                for leaf in (pair.one, pair.other)
            )
            second, apart = (
                None if key is None else load_dictionary(group.storage, key, Path(scratch))
                for key in pair.dictionaries[2:]
            )
            figures = {
                "cka_adapters": alike,
                "max_cosine_adapters": similar_dictionaries(
                    moments.spectrum, one, other, second, apart, settings
                ),
                "missing_share_adapters": missing_between(coder, one, other, second, apart),
            }
        write_measures(group.storage, key, replace(pair.one, reference_name=pair.other.adapter), figures)
    return len(group.pairs)
