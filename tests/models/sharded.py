"""One rank of a ZeRO-3 gang without Ray: reads its work as JSON, writes the deltas that it got. Run by the test of the same name."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from deltasae_ray.harvest.worker import load_with_adapters
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.together import harvested_deltas
from deltasae_ray.storage import Storage

HOOKPOINTS = (Hookpoint(0), Hookpoint(2))


def ids(rank: int, rows: int) -> torch.Tensor:
    """Every rank has rows of its own."""
    return torch.randint(3, 250, (rows, 16), generator=torch.Generator().manual_seed(100 * rows + rank))


def flat(found: dict) -> dict[str, torch.Tensor]:
    return {f"{name}/{h}": x.contiguous() for name, taken in found.items() for h, x in taken.items()}


def main(work: Path, rank: int) -> None:
    job = json.loads(work.read_text())
    for world in job["worlds"]:
        refs = tuple(AdapterRef(name, key, name, 1, 1.0) for name, key in world["adapters"].items())
        cfg = ModelConfig(base=world["model"], sharding="zero3")
        model = load_with_adapters(Storage(job["root"]), cfg, refs, "cpu", deepest=2)
        local = sum(p.numel() for p in model.parameters())
        assert local == 0, f"parameters are sharded: {local} numbers stay whole between passes"
        names = list(world["adapters"])
        for rows in job["rows"]:
            found = dict(harvested_deltas(model, ids(rank, rows), HOOKPOINTS, names, together=job["together"], bf16=False))
            save_file(flat(found), work.parent / f"{world['name']}-{rows}-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
