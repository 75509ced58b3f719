"""Divergence as Ray tasks: one per adapter and layer; the driver holds figures, never activations."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.adapter_seeds import compared_pairs, with_ceilings
from deltasae_ray.analyses.divergence.pair_task import PairGroup, measure_pairs, pair_key
from deltasae_ray.analyses.divergence.task import Group, measure_group, read_measures
from deltasae_ray.analyses.leaf_spec import LeafSpec, measures_key
from deltasae_ray.analyses.table import DivergenceRow, corrected, seed_rows
from deltasae_ray.runtime.tasks import run_tasks
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)


def diverge_points(
    storage: Storage, harvest_key: str, leaves: Sequence[LeafSpec], cfg: DivergeConfig
) -> list[DivergenceRow]:
    """Measures every leaf that has no measures yet, and pairs of adapters; returns the rows of all, and
    those over seeds, with p corrected.

    Raises:
        DeltaSaeError: what a task raised on purpose, such as a damaged shard or a dictionary of another
            width.
    """
    shards = open_harvest(storage, harvest_key)
    keys = {leaf: measures_key(storage, shards, leaf, cfg) for leaf in leaves}
    pairs = {pair: pair_key(storage, shards, pair, cfg) for pair in compared_pairs(leaves, cfg.pairs)}
    work: list[tuple[Callable[[Any], Any], Any]] = [
        (measure_group, Group(storage, harvest_key, tuple(g), tuple(keys[leaf] for leaf in g), cfg))
        for g in _missing(storage, keys)
    ]
    work += [
        (measure_pairs, PairGroup(storage, harvest_key, tuple(g), tuple(pairs[pair] for pair in g), cfg))
        for g in _missing(storage, pairs)
    ]
    run_tasks(work, 1.0, bar="diverge", memory=task_memory(shards, leaves))
    rows = [
        DivergenceRow.of(leaf, name, m)
        for leaf in leaves
        for name, m in read_measures(storage, keys[leaf]).items()
    ]
    rows += seed_rows(rows)
    between = with_ceilings({pair: read_measures(storage, key) for pair, key in pairs.items()})
    rows += [
        DivergenceRow.of(p.one, name, m, reference=p.other.adapter)
        for p, figures in between.items()
        for name, m in figures.items()
    ]
    return corrected(rows)


def _missing(storage: Storage, keys: dict[Any, str]) -> list[list]:
    """What has no measures yet, in groups that share their rows."""
    together: dict[tuple, list] = defaultdict(list)
    for spec, key in keys.items():
        if not storage.exists(key):
            together[spec.shared].append(spec)
    return list(together.values())


COPIES = 8
"""Times that a task holds the rows of one source: deltas and base activations in fp32 as read, and centred,
flipped and in fp64 as they are measured."""


def task_memory(shards: ShardSet, leaves: Sequence[LeafSpec]) -> int:
    """Bytes that a task asks Ray for, so that no node is given more than it can hold: rows, covariances,
    dictionaries and their codings."""
    rows = sum(unit.tokens for split in ("fit", "eval") for unit in shards.units(split))
    width, latents = shards.d_model, max((leaf.d_sae for leaf in leaves), default=0)
    return 4 * (COPIES * rows * width + 16 * 2 * latents * width) + 8 * 12 * width**2
