"""A small harvest with structure: what the tests of this room fit dictionaries to."""

import hashlib

import numpy as np

from deltasae_ray.batches import TokenBatch
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.manifest import commit_unit
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage

KEY = "harvest/0123456789abcdef"
D_MODEL = 16
HOOKS = (Hookpoint(1), Hookpoint(3))
SOURCES = (
    Source("base", "base", "base"),
    Source("r4", "adapter", "04" * 8, rank=4, alpha=8.0, seed=0),
    Source("late", "adapter", "aa" * 8, rank=4, alpha=8.0, seed=0),
)
"""`late` changes nothing before layer 3."""
CFG = FitConfig(d_sae=(32, 48), k=(4,), batch_tokens=128, steps=60, workers=1)


def point(
    adapter: str = "r4", layer: int = 1, d_sae: int = 32, seed: int = 0, documents: str = "all"
) -> FitPoint:
    return FitPoint(adapter, layer, d_sae, 4, "topk", seed, documents)  # type: ignore[arg-type]


def make_unit(index: int) -> TokenBatch:
    """Four contexts of 9 tokens, of four documents; every third unit is for evaluation."""
    rng = np.random.default_rng(index)
    return TokenBatch(
        split="eval" if index % 3 == 2 else "fit",
        corpus="domain",
        input_ids=rng.integers(0, 1000, (4, 9)).astype(np.int32),
        mask=np.ones((4, 9), bool),
        marker=np.zeros((4, 9), bool),
        doc_ids=tuple(f"doc-{index}-{row}" for row in range(4)),
        starts=(0, 9, 18, 27),
    )


def vectors(unit: TokenBatch, source: Source, hookpoint: Hookpoint) -> np.ndarray:
    """float32 [token, d_model]: 24 atoms, 3 active, the same for every unit of a source and hookpoint; huge
    at position 0."""
    if source.name == "late" and hookpoint.layer < 3:
        return np.zeros((unit.num_tokens, D_MODEL), np.float32)
    world = np.random.default_rng(
        [hookpoint.layer, int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:4])]
    )
    atoms = world.standard_normal((24, D_MODEL))
    rng = np.random.default_rng([int(unit.name[:8], 16), hookpoint.layer])
    codes = np.zeros((unit.num_tokens, 24))
    np.put_along_axis(
        codes, rng.random(codes.shape).argsort(axis=1)[:, :3], rng.random((unit.num_tokens, 3)) + 0.5, axis=1
    )
    x = 3 * codes @ atoms + 0.05 * rng.standard_normal((unit.num_tokens, D_MODEL)) + 2
    x[unit.positions() == 0] *= 1e4
    return x.astype(np.float32)


def make_harvest(
    storage: Storage,
    units: int = 30,
    made: list[TokenBatch] | None = None,
    sources: tuple[Source, ...] = SOURCES,
) -> list[TokenBatch]:
    made = made or [make_unit(index) for index in range(units)]
    write_harvest(storage, KEY, {"d_model": D_MODEL})
    write_units(storage, KEY, map(Unit.of, made))
    for source in sources:
        write_source(storage, KEY, source)
    for unit in made:
        commit_unit(
            storage,
            KEY,
            [
                write_shard(storage, KEY, s.digest, unit, {h: vectors(unit, s, h) for h in HOOKS})
                for s in sources
            ],
        )
    return made
