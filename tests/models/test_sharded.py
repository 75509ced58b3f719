"""Two ranks share a model by ZeRO-3: the deltas are those of one process that holds it whole."""

import json
import random
from pathlib import Path

import pytest
from safetensors.torch import load_file

from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import deltas
from deltasae_ray.models.load import load_model
from tests.models.sharded import HOOKPOINTS, flat, ids
from tests.processes import two_ranks
from tests.tiny import ARCHITECTURES, save_adapter, save_model

pytestmark = pytest.mark.slow
World = dict[str, object]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[World]]:
    """Three architectures, each with adapters of different ranks, targets and scales; one of the Llama's is a DoRA."""
    root = tmp_path_factory.mktemp("sharded")
    found: list[World] = []
    for kind in ARCHITECTURES:
        model = save_model(root / kind / "model", kind)
        save_adapter(root / kind / "r2", model, kind, rank=2, seed=2)
        save_adapter(root / kind / "r8", model, kind, rank=8, seed=8, use_rslora=True, targets=["c_fc"] if kind == "gpt2" else ["gate_proj", "v_proj"])
        save_adapter(root / kind / "late", model, kind, rank=3, seed=3, layers_to_transform=[2])
        found.append({"name": kind, "model": str(model), "adapters": {name: f"{kind}/{name}" for name in ("r8", "late", "r2")}})
    return root, found


def run_ranks(root: Path, worlds: list[World], folder: Path, *, rows: list[int], together: bool = True, seeds: tuple[int, int] = (0, 1)) -> None:
    """Two ranks whose sets iterate in different orders; neither may wait for the other for long."""
    work = folder / "work.json"
    work.write_text(json.dumps({"root": str(root), "worlds": worlds, "rows": rows, "together": together}))
    two_ranks("tests.models.sharded", work, seeds)


def check(worlds: list[World], root: Path, folder: Path, rows: list[int]) -> None:
    for world in worlds:
        adapters = {name: root / key for name, key in world["adapters"].items()}  # type: ignore[attr-defined]
        whole = attach(load_model(Path(str(world["model"])), deepest=2), adapters)
        for count in rows:
            for rank in range(2):
                sharded = load_file(folder / f"{world['name']}-{count}-{rank}.safetensors")
                expected = flat(dict(deltas(whole, ids(rank, count), HOOKPOINTS, list(adapters))))
                assert sharded.keys() == expected.keys()
                for name, x in expected.items():
                    assert (sharded[name] - x).norm() <= 1e-5 * x.norm(), f"{world['name']}, {name}"


def test_two_ranks_with_different_hash_seeds_get_the_deltas_of_one_process(worlds: tuple[Path, list[World]], tmp_path: Path) -> None:
    root, found = worlds
    run_ranks(root, found, tmp_path, rows=[1, 2, 5])
    check(found, root, tmp_path, [1, 2, 5])


@pytest.mark.prove
@pytest.mark.parametrize("repetition", range(20))
def test_twenty_gangs_of_random_hash_seeds_and_odd_row_counts_agree_and_none_hangs(
    repetition: int, worlds: tuple[Path, list[World]], tmp_path: Path
) -> None:
    draw = random.Random(repetition)
    root, found = worlds
    rows = [2 * draw.randrange(4) + 1, draw.randrange(1, 8)]
    run_ranks(root, found, tmp_path, rows=rows, together=bool(repetition % 2), seeds=(draw.randrange(2**32), draw.randrange(2**32)))
    check(found, root, tmp_path, rows)
