"""A base model that two processes share by ZeRO-3: the adapter and its loss curve are those of one process
that holds it whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from deltasae_ray.adapt.run import adapt
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import load_model
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.storage import Storage
from tests.adapt.sharded import config_of, train
from tests.adapt.test_run import CORPUS, checkpointed, killing
from tests.processes import two_ranks
from tests.tiny import ARCHITECTURES, save_model

pytestmark = pytest.mark.slow
World = dict[str, Any]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    """Trained by two ranks: three architectures, with contexts that the ranks cannot share equally; one
    leaves a rank with none at all."""
    root = tmp_path_factory.mktemp("sharded")

    def world(name: str, kind: str, batch_contexts: int, max_tokens: int) -> World:
        model = root / kind if (root / kind).exists() else save_model(root / kind, kind)
        found = {
            "name": name,
            "kind": kind,
            "batch_contexts": batch_contexts,
            "max_tokens": max_tokens,
            "model": str(model),
        }
        return found | {"ranks": [str(root / f"{name}-{rank}") for rank in range(2)]}

    made = [world(kind, kind, 3, 600) for kind in ARCHITECTURES]
    made += [world("single", "llama", 1, 200), world("long", "llama", 2, 1600)]
    (root / "work.json").write_text(json.dumps(made))
    two_ranks("tests.adapt.sharded", root / "work.json")
    return made


def assert_close(curve: Sequence[dict[str, Any]], weights: Path, world: World, folder: Path) -> None:
    """Against the training of a process that holds the whole model."""
    alone = train(load_model(Path(world["model"])), world)
    alone.write_adapter(folder, "tiny")
    assert len(curve) > 2
    for ours, theirs in zip(curve, alone.progress.curve, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4), world["name"]
    expected = load_file(folder / WEIGHTS)
    for name, x in load_file(weights).items():
        assert (x - expected[name]).norm() <= 1e-3 * expected[name].norm(), f"{world['name']}, {name}"


def test_two_ranks_train_the_adapter_of_one_process_with_the_same_loss_curve(
    worlds: list[World], tmp_path: Path
) -> None:
    for world in worlds:
        first, second = (Path(rank) for rank in world["ranks"])
        for file in (CONFIG, WEIGHTS, "curve.json"):
            assert (first / file).read_bytes() == (second / file).read_bytes(), "whichever rank writes"
        assert_close(json.loads((first / "curve.json").read_text()), first / WEIGHTS, world, tmp_path)
        assert (first / CONFIG).read_bytes() == (tmp_path / CONFIG).read_bytes(), (
            "plain PEFT files, as of any training"
        )


@pytest.mark.prove
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_rank_under_ray_leaves_the_adapter_of_two_calm_ranks(
    worlds: list[World], tmp_path: Path
) -> None:
    (world,) = [w for w in worlds if w["name"] == "long"]
    killed = killing(checkpointed(tmp_path, 6))
    storage = Storage(str(tmp_path))
    (ref,) = adapt(
        storage, ModelConfig(world["model"], sharding="zero3"), CORPUS, config_of(world), GangConfig(ranks=2)
    )
    assert len(killed) == 1
    calm = Path(world["ranks"][0])
    assert ref.facts["curve"] == json.loads((calm / "curve.json").read_text())
    assert storage.read_bytes(f"{ref.key}/{WEIGHTS}") == (calm / WEIGHTS).read_bytes()
