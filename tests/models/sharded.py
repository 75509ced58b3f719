"""One rank of a ZeRO-3 gang without Ray: reads its work as JSON, writes the deltas that it got. Run by the
test of the same name."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.attached import load_with_adapters
from deltasae_ray.models.capture import deltas
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.local import reading_coordinates
from deltasae_ray.models.precision import in_fp64
from deltasae_ray.models.together import harvested_deltas
from deltasae_ray.storage import Storage

HOOKPOINTS = (Hookpoint(0), Hookpoint(2))


def ids(rank: int, rows: int) -> torch.Tensor:
    """Every rank has rows of its own."""
    return torch.randint(3, 250, (rows, 16), generator=torch.Generator().manual_seed(100 * rows + rank))


def flat(found: dict) -> dict[str, torch.Tensor]:
    return {f"{name}/{h}": x.contiguous() for name, taken in found.items() for h, x in taken.items()}


def loaded(root: Path | str, world: dict[str, Any], sharding: str) -> nn.Module:
    refs = tuple(AdapterRef(name, key, name, 1, 1.0) for name, key in world["adapters"].items())
    how = {"offload": world.get("offload", "none")} if sharding == "zero3" else {}
    cfg: Any = ModelConfig(
        base=world["model"], sharding=sharding, weights=world.get("weights", "fp32"), **how
    )  # type: ignore[arg-type]
    return load_with_adapters(Storage(str(root)), cfg, refs, "cpu", deepest=2)


def harvested(
    model: nn.Module, world: dict[str, Any], tokens: torch.Tensor, *, together: bool
) -> dict[str, torch.Tensor]:
    """Deltas, and what modules change in low-rank coordinates."""
    modules = {name: [Hookpoint.parse(h) for h in hooks] for name, hooks in world["lora"].items()}
    with reading_coordinates(model, modules) as coordinates:
        bf16 = world.get("bf16", False)
        taken = dict(
            harvested_deltas(model, tokens, HOOKPOINTS, list(world["adapters"]), together=together, bf16=bf16)
        )
    return flat(taken) | {f"{name}/{h}": x.contiguous() for (name, h), x in coordinates.items()}


def passes(
    model: nn.Module, world: dict[str, Any], rank: int, rows: int
) -> dict[str, dict[str, torch.Tensor]]:
    """Kind of pass → deltas, in an order that is the same on every rank: the mixed batch with what follows it
    alone, one adapter after the other, and fp64; of a world in mixed precision the mixed batch only."""
    names, tokens = list(world["adapters"]), ids(rank, rows)
    kinds = ["together"] if world.get("bf16") else ["together", "switching"]
    found = {kind: harvested(model, world, tokens, together=kind == "together") for kind in kinds}
    if world.get("bf16"):
        return found
    with in_fp64(model):
        return found | {"fp64": flat(dict(deltas(model, tokens, HOOKPOINTS, names)))}


def main(work: Path, rank: int) -> None:
    job = json.loads(work.read_text())
    for world in job["worlds"]:
        model = loaded(job["root"], world, "zero3")
        local = sum(p.numel() for p in model.parameters())
        assert local == 0, f"parameters are sharded: {local} numbers stay whole between passes"
        for rows in job["rows"]:
            for kind, found in passes(model, world, rank, rows[rank]).items():
                save_file(found, work.parent / f"{world['name']}-{kind}-{rows[rank]}-{rank}.safetensors")
            held = {str(p.dtype) for n, p in model.named_parameters() if ".lora_" not in n}
            assert held == {"torch.bfloat16" if world.get("weights") == "bf16" else "torch.float32"}, held
        left = [name for name, p in model.named_parameters() if p.numel() and "lora_embedding_" not in name]
        assert not left, f"{world['name']}: {left} stay whole after passes"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
