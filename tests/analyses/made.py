"""A small study whose deltas are sparse combinations of planted atoms: shards on disk and dictionaries that
know them."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.batches import TokenBatch
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.shards.manifest import commit_unit
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage

KEY = "harvest/0123456789abcdef"
D_MODEL, ATOMS, ACTIVE = 32, 48, 3
LAYERS = (1, 2)
SOURCES = (
    Source("base", "base", "base"),
    Source("r2", "adapter", "02" * 8, rank=2, alpha=4.0, seed=0),
    Source("r4", "adapter", "04" * 8, rank=4, alpha=8.0, seed=0),
)


def atoms(name: str) -> torch.Tensor:
    """Unit rows [ATOMS, D_MODEL] that belong to a source; half of an adapter's are the base's."""
    own = F.normalize(
        torch.randn(
            ATOMS, D_MODEL, generator=torch.Generator().manual_seed(int.from_bytes(name.encode()) % 2**31)
        ),
        dim=1,
    )
    return own if name == "base" else torch.cat([atoms("base")[: ATOMS // 2], own[ATOMS // 2 :]])


def unit(index: int) -> TokenBatch:
    """Four documents of 16 tokens; two units of three are for fitting, one for evaluation."""
    rng = np.random.default_rng(index)
    return TokenBatch(
        split="eval" if index % 3 == 2 else "fit",
        corpus="domain",
        input_ids=rng.integers(0, 1000, (4, 16)).astype(np.int32),
        mask=np.ones((4, 16), bool),
        marker=np.zeros((4, 16), bool),
        doc_ids=tuple(f"doc-{index}-{row}" for row in range(4)),
        starts=(0, 16, 32, 48),
    )


def vectors(batch: TokenBatch, source: str, layer: int) -> np.ndarray:
    """float32 [token, D_MODEL]: sparse codes of the source's atoms; position 0 is something else entirely."""
    g = torch.Generator().manual_seed(int(batch.name[:8], 16) + 31 * layer + len(source))
    codes = torch.zeros(batch.num_tokens, ATOMS)
    codes.scatter_(
        1,
        torch.rand(batch.num_tokens, ATOMS, generator=g).topk(ACTIVE, 1).indices,
        0.5 + torch.rand(batch.num_tokens, ACTIVE, generator=g),
    )
    rows = codes @ atoms(source) + 0.02 * torch.randn(batch.num_tokens, D_MODEL, generator=g)
    rows[torch.from_numpy(batch.positions()) == 0] = 1000.0
    return rows.numpy()


def make_study(root: Path, units: int = 30) -> Storage:
    storage = Storage(str(root))
    write_harvest(storage, KEY, {"d_model": D_MODEL})
    batches = [unit(i) for i in range(units)]
    write_units(storage, KEY, map(Unit.of, batches))
    for source in SOURCES:
        write_source(storage, KEY, source)
    for batch in batches:
        hooks = [Hookpoint(layer) for layer in LAYERS]
        commit_unit(
            storage,
            KEY,
            [
                write_shard(
                    storage, KEY, s.digest, batch, {h: vectors(batch, s.name, h.layer) for h in hooks}
                )
                for s in SOURCES
            ],
        )
    return storage


def save_dictionary(storage: Storage, name: str, rows: torch.Tensor) -> str:
    """A TopK dictionary with these decoder rows; returns its key."""
    ones = torch.ones(len(rows))
    made = Dictionary(
        rows.T.contiguous(), rows, 0 * ones, torch.zeros(D_MODEL), "topk", ACTIVE, 0.1 * ones, ones
    )
    made.save(storage.local(f"dictionaries/{name}"))
    storage.write_json(f"dictionaries/{name}/manifest.json", {"digest": name})
    return f"dictionaries/{name}"


def make_leaves(storage: Storage) -> list[LeafSpec]:
    """One dictionary per adapter and layer, against a reference that is the base's atoms."""
    reference = save_dictionary(storage, "reference", atoms("base"))
    leaves = []
    for source in SOURCES[1:]:
        for layer in LAYERS:
            key = save_dictionary(storage, f"{source.name}-{layer}", atoms(source.name))
            leaves.append(
                LeafSpec(
                    source.name,
                    layer,
                    ATOMS,
                    ACTIVE,
                    "topk",
                    0,
                    source.rank,
                    source.seed,
                    key,
                    reference,
                    "toy reference (1,200 tokens)",
                )
            )
    return leaves
