"""A small harvest made of seeded noise: what the tests of this room write, read and damage."""

import numpy as np

from deltasae_ray.batches import TokenBatch
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.manifest import commit_unit
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage

KEY = "harvest/0123456789abcdef"
D_MODEL = 24
HOOKS = (Hookpoint(2), Hookpoint(10))
SOURCES = (
    Source("base", "base", "base"),
    Source("r16", "adapter", "16" * 8, rank=16, alpha=32.0, seed=0),
    Source("r4", "adapter", "04" * 8, rank=4, alpha=8.0, seed=0),
    Source("random", "random", "ff" * 8, rank=4, alpha=8.0, seed=1),
)


def make_unit(index: int) -> TokenBatch:
    """Three contexts of up to 9 tokens with padding on the right; every third unit is for evaluation."""
    rng = np.random.default_rng(index)
    mask = np.arange(9) < rng.integers(4, 10, size=(3, 1))
    return TokenBatch(
        split="eval" if index % 3 == 2 else "fit",
        corpus="domain" if index % 2 else "kjv",
        input_ids=rng.integers(0, 1000, mask.shape).astype(np.int32),
        mask=mask,
        marker=mask & (rng.random(mask.shape) < 0.2),
        doc_ids=tuple(f"doc-{index}-{row}" for row in range(3)),
        starts=(0, 9, 18),
    )


def make_vectors(unit: TokenBatch, source: str, hookpoint: Hookpoint) -> np.ndarray:
    """float32 [token, d_model], a function of its arguments; rows differ in size by orders of magnitude."""
    seed = [int(unit.name[:8], 16), int.from_bytes(source.encode()), hookpoint.layer]
    rng = np.random.default_rng(seed)
    return rng.standard_normal((unit.num_tokens, D_MODEL), np.float32) * np.exp(
        5 * rng.standard_normal((unit.num_tokens, 1), np.float32)
    )


def begin(storage: Storage, units: list[TokenBatch]) -> None:
    """What a harvest writes before its first shard."""
    write_harvest(storage, KEY, {"d_model": D_MODEL})
    write_units(storage, KEY, map(Unit.of, units))
    for source in SOURCES:
        write_source(storage, KEY, source)


def write_unit(
    storage: Storage, unit: TokenBatch, work: dict[str, tuple[Hookpoint, ...]] | None = None
) -> None:
    """Writes and commits a unit; `work` is what `Manifest.missing` says of it, or everything."""
    work = work or {source.digest: HOOKS for source in SOURCES}
    rows = [
        write_shard(storage, KEY, s, unit, {h: make_vectors(unit, s, h) for h in hooks})
        for s, hooks in work.items()
    ]
    commit_unit(storage, KEY, rows)


def make_harvest(storage: Storage, count: int = 6) -> list[TokenBatch]:
    units = [make_unit(index) for index in range(count)]
    begin(storage, units)
    for unit in units:
        write_unit(storage, unit)
    return units


def stored(vectors: np.ndarray) -> np.ndarray:
    """What storage may make of float32 vectors, by NumPy's own conversion: float16 times a power of two per
    row."""
    exponents = np.frexp(np.abs(vectors).max(axis=1, keepdims=True))[1] - 15
    return np.ldexp(np.ldexp(vectors, -exponents).astype(np.float16).astype(np.float32), exponents)
