"""Two adapters at one layer: how alike their deltas are, and their dictionaries."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

from deltasae_ray.diverge.config import DivergeConfig
from deltasae_ray.diverge.leaves import METRICS_VERSION, LeafSpec, dictionary_digest, load_dictionary, settings_of
from deltasae_ray.diverge.measuring import write_measures
from deltasae_ray.divergence.between import between_adapters
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage, digest


@dataclass(frozen=True)
class PairSpec:
    """Leaves of two adapters that agree in layer, shape and seed."""

    one: LeafSpec
    other: LeafSpec

    @property
    def dictionaries(self) -> tuple[str, str, str | None]:
        """The one's, the other's, and the one's second seed."""
        return self.one.dictionary, self.other.dictionary, self.one.second


def adapter_pairs(leaves: Sequence[LeafSpec]) -> list[PairSpec]:
    """Every two adapters, at every layer and shape that both have."""
    shape = {leaf: (leaf.layer, leaf.d_sae, leaf.k, leaf.architecture, leaf.seed) for leaf in leaves}
    return [PairSpec(a, b) for a, b in combinations(leaves, 2) if shape[a] == shape[b] and a.adapter != b.adapter]


def pair_key(storage: Storage, shards: ShardSet, pair: PairSpec, cfg: DivergeConfig) -> str:
    """File of the pair's measures, made of the digests of what they depend on."""
    inputs = {
        "version": METRICS_VERSION,
        "harvest": shards.key,
        "units": digest([u.name for split in ("fit", "eval") for u in shards.units(split)]),
        "sources": [shards.source(leaf.adapter).digest for leaf in (pair.one, pair.other)],
        "hookpoint": str(Hookpoint(pair.one.layer)),
        "settings": asdict(settings_of(cfg)),
        "dictionaries": [
            dictionary_digest(storage, key) if key else None for key in (pair.one.dictionary, pair.other.dictionary, pair.one.second)
        ],
    }
    return f"measures/pair-{digest(inputs)}.json"


def measure_pair(work: tuple[Storage, str, PairSpec, str, DivergeConfig]) -> int:
    """Measures one pair and stores it."""
    storage, harvest_key, pair, key, cfg = work
    shards = open_harvest(storage, harvest_key)
    fit_rows = shards.read(pair.one.layer, pair.one.adapter, split="fit")[shards.tokens("fit").position > 0]
    tokens = shards.tokens("eval")
    keep = tokens.position > 0
    deltas = [shards.read(leaf.layer, leaf.adapter, split="eval")[keep] for leaf in (pair.one, pair.other)]
    with tempfile.TemporaryDirectory() as scratch:
        one, other = (load_dictionary(storage, leaf.dictionary, Path(scratch)) for leaf in (pair.one, pair.other))
        second = None if pair.one.second is None else load_dictionary(storage, pair.one.second, Path(scratch))
        found = between_adapters(fit_rows, deltas[0], deltas[1], tokens.doc_id[keep], one, other, second, settings_of(cfg))
    write_measures(storage, key, replace(pair.one, reference_name=pair.other.adapter), found)
    return 1
