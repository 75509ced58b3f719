"""Two ranks share a model by ZeRO-3: the deltas are those of one process that holds it whole."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltasae_ray.models.adapter_files import WEIGHTS
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.local import lora_writers
from tests.models.sharded import loaded, passes
from tests.processes import two_ranks
from tests.tiny import ARCHITECTURES, LAYERS, save_adapter, save_model

pytestmark = pytest.mark.slow
World = dict[str, Any]
log = logging.getLogger(__name__)

OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {"dora": {"use_dora": True}, "norms": {"modules_to_save": ["input_layernorm"]}},
    "gemma3": {
        "dora": {"use_dora": True, "use_rslora": True},
        "embedding": {"targets": ["embed_tokens", "o_proj"]},
    },
    "gpt2": {"biases": {"bias": "all"}},
}
"""Adapters that share no mixed batch: they switch."""


def moved(folder: Path) -> None:
    """Norms, biases and magnitudes away from the base's, where PEFT starts them."""
    tensors = load_file(folder / WEIGHTS)
    told = ("norm", "bias", "magnitude")
    save_file(
        {n: t * 1.2 + 0.05 if any(word in n for word in told) else t for n, t in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[World]]:
    """Three architectures, each with adapters of different ranks, targets, scales and kinds; a Llama whose
    weights are held in bf16 and wait in the machine's memory; and one in mixed precision."""
    root = tmp_path_factory.mktemp("sharded")
    found: list[World] = []
    for kind in ARCHITECTURES:
        model = save_model(root / kind / "model", kind, dtype=torch.bfloat16)
        save_adapter(root / kind / "r2", model, kind, rank=2, seed=2)
        save_adapter(
            root / kind / "r8",
            model,
            kind,
            rank=8,
            seed=8,
            use_rslora=True,
            targets=["c_fc"] if kind == "gpt2" else ["gate_proj", "v_proj"],
        )
        save_adapter(root / kind / "late", model, kind, rank=3, seed=3, layers_to_transform=[2])
        for name, settings in OTHERS[kind].items():
            moved(save_adapter(root / kind / name, model, kind, **settings))
        names, empty = ["r8", "late", *OTHERS[kind], "r2"], empty_model(model)
        modules = {
            name: [str(h) for h in lora_writers(root / kind / name, empty) if h.layer < LAYERS - 1]
            for name in names
        }
        found.append(
            {
                "name": kind,
                "model": str(model),
                "adapters": {name: f"{kind}/{name}" for name in names},
                "lora": modules,
            }
        )
    llama = found[0]
    found.append(llama | {"name": "bf16-offloaded", "weights": "bf16", "offload": "cpu"})
    plain = {
        part: {name: llama[part][name] for name in ("r8", "late", "r2")} for part in ("adapters", "lora")
    }
    found.append(llama | {"name": "mixed", "bf16": True, **plain})
    return root, found


def run_ranks(worlds: tuple[Path, list[World]], folder: Path, draw: random.Random) -> None:
    """Two ranks whose sets iterate in different orders, with odd counts of rows that differ; neither may wait
    for the other for long. Their deltas are those of one process."""
    root, found = worlds
    rows = [draw.sample((1, 3, 5, 7), 2) for _ in range(2)]
    seeds = draw.randrange(2**32), draw.randrange(2**32)
    log.info("rows of both ranks %s, hash seeds %s", rows, seeds)
    work = folder / "work.json"
    work.write_text(json.dumps({"root": str(root), "worlds": found, "rows": rows}))
    two_ranks("tests.models.sharded", work, seeds)
    for world in found:
        whole = loaded(root, world, "none")
        for rank, count in {(rank, pair[rank]) for pair in rows for rank in range(2)}:
            for kind, expected in passes(whole, world, rank, count).items():
                assert kind == "fp64" or sum(name.endswith(".hook_lora") for name in expected) >= 9, (
                    "modules of every plain adapter"
                )
                sharded = load_file(folder / f"{world['name']}-{kind}-{count}-{rank}.safetensors")
                assert sharded.keys() == expected.keys()
                for name, x in expected.items():
                    assert x.any() or name.startswith("late/blocks.0")
                    limit = 1e-10 if kind == "fp64" else 1e-5
                    assert (sharded[name] - x).norm() <= limit * x.norm(), f"{world['name']}, {kind}, {name}"


def test_two_ranks_with_random_hash_seeds_and_odd_rows_get_the_deltas_of_one_process(
    worlds: tuple[Path, list[World]], tmp_path: Path
) -> None:
    run_ranks(worlds, tmp_path, random.Random())


@pytest.mark.prove
@pytest.mark.parametrize("repetition", range(20))
def test_twenty_gangs_agree_and_none_hangs(
    repetition: int, worlds: tuple[Path, list[World]], tmp_path: Path
) -> None:
    run_ranks(worlds, tmp_path, random.Random(repetition))
