"""The harvest on real Ray, with a tiny model."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import deltas, unit_ids
from deltasae_ray.models.load import load_model
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage
from tests.harvest.driver import SITES
from tests.harvest.strikes import Strike, Struck, Victim, prepared, strike
from tests.harvest.study import corpus, hashes, run

pytestmark = pytest.mark.slow
Adapters = tuple[Path, Path]


@pytest.fixture(scope="module")
def calm(
    ray_cluster: None, tiny_model: Path, tiny_adapters: Adapters, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An undisturbed harvest of two adapters, its root and key."""
    root = tmp_path_factory.mktemp("calm")
    return root, run(root, tiny_model, list(tiny_adapters), sites=SITES).key


def test_every_unit_has_every_source_once_and_rows_come_back_in_order(
    calm: tuple[Path, str], tiny_model: Path, tiny_adapters: Adapters
) -> None:
    root, key = calm
    shards = open_shards(f"{root}/{key}")
    assert set(shards.adapters) >= {"r2", "r4", "random"}
    units = sorted(corpus(tiny_model).units, key=lambda u: u.name)
    model = attach(load_model(tiny_model, deepest=2), {p.name: p for p in tiny_adapters})
    for source in ("base", "r2", "r4"):
        for layer in (1, 2):
            expected = np.concatenate(
                [
                    dict(deltas(model, unit_ids(u), [Hookpoint(layer)], ["r2", "r4"]))[source][
                        Hookpoint(layer)
                    ][torch.tensor(u.mask)].numpy()
                    for u in units
                ]
            )
            stored = shards.read(layer, source)
            assert stored.shape == expected.shape and stored.dtype == np.float32
            assert np.linalg.norm(stored - expected) <= 1e-3 * np.linalg.norm(expected)
            assert np.square(stored - expected).sum() <= 1e-6 * np.square(expected).sum(), "quantisation"
    assert np.array_equal(shards.tokens().token_id, np.concatenate([u.token_ids() for u in units]))


def test_the_random_adapter_is_as_strong_as_the_trained_one(calm: tuple[Path, str]) -> None:
    shards = open_shards(f"{calm[0]}/{calm[1]}")
    trained, random = (np.linalg.norm(shards.read(2, name), axis=1).mean() for name in ("r2", "random"))
    assert 0.5 < random / trained < 2


def test_the_noise_floor_stands_in_the_sources(calm: tuple[Path, str]) -> None:
    for name in ("r2", "r4", "random"):
        noise = open_shards(f"{calm[0]}/{calm[1]}").source(name).facts["noise"]
        assert set(noise) == {"blocks.1.hook_resid_post", "blocks.2.hook_resid_post"}
        assert all(floor["snr"] > 1e6 for floor in noise.values())


@pytest.fixture(scope="module")
def calm_ranks(
    ray_cluster: None, tiny_model: Path, tiny_adapters: Adapters, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An undisturbed harvest by two ranks: one pass for all adapters rounds otherwise than one pass each."""
    root = tmp_path_factory.mktemp("calm-ranks")
    return root, run(root, tiny_model, list(tiny_adapters), ranks=2, sites=SITES).key


def test_two_zero3_ranks_write_every_unit_once_and_the_deltas_of_one_process(
    calm: tuple[Path, str], calm_ranks: tuple[Path, str], tiny_model: Path
) -> None:
    assert len(corpus(tiny_model).units) % 2 == 1, "an odd count of units, so that one rank must pad"
    sharded, whole = open_shards(f"{calm_ranks[0]}/{calm_ranks[1]}"), open_shards(f"{calm[0]}/{calm[1]}")
    trained = {
        whole.source(name).digest for name in ("base", "r2", "r4")
    }  # the random one follows what was measured, and so its digest does
    written, expected = (
        sorted(identity for identity in hashes(*each) if identity[1] in trained)
        for each in (calm_ranks, calm)
    )
    assert written == expected and len(hashes(*calm_ranks)) == len(hashes(*calm))
    modules = [(hook, source) for source in ("r2", "r4") for hook in whole.lora_hookpoints(source)]
    assert len(modules) == 2 * 2 * 3, "three modules of each adapter at both layers"
    for hook, source in [(2, "base"), (2, "r2"), (2, "r4"), *modules]:
        ours, theirs = sharded.read(hook, source), whole.read(hook, source)
        # float16 on disk: what fp32 rounds otherwise may fall to the other side of a half
        assert np.linalg.norm(ours - theirs) <= 5e-4 * np.linalg.norm(theirs)
        assert np.abs(ours - theirs).mean() <= 1e-5 * np.abs(theirs).mean()


def assert_undisturbed(root: Path, calm: tuple[Path, str], strikes: list[Struck]) -> None:
    """The harvest below `root` is the calm one, and what counted before a strike was not written again."""
    assert hashes(root, calm[1]) == hashes(*calm)
    identities = [row.identity for row in Manifest.load(Storage(str(root)), calm[1]).rows]
    assert len(identities) == len(set(identities))
    open_shards(f"{root}/{calm[1]}").verify()
    for struck in strikes:
        assert {file: file.stat().st_mtime_ns for file in struck.counted} == struck.counted, (
            "a unit that counted was done again"
        )


# A driver that is killed while it harvests: tests/study/test_sweep.py, where it is the whole study's.
@pytest.mark.parametrize(
    "strikes",
    [
        [Strike("rank", records=2), Strike("node", records=10)],  # a lost node takes its leader with it
        pytest.param(
            [Strike("rank", records=2), Strike("leader", records=6), Strike("node", records=10)],
            marks=pytest.mark.prove,
        ),
    ],
    ids=["rank and node", "rank, leader and node"],
)
def test_a_harvest_that_loses_processes_ends_by_itself_as_a_calm_one(
    strikes: list[Strike],
    calm_ranks: tuple[Path, str],
    tiny_model: Path,
    tiny_adapters: Adapters,
    tmp_path: Path,
) -> None:
    prepared(calm_ranks[0], tmp_path)
    found = strike(tmp_path, calm_ranks[1], tiny_model, tiny_adapters, strikes, ranks=2)
    assert all(struck.followed for struck in found), "a strike fell outside the harvest"
    counts = [len(struck.counted) for struck in found]
    assert counts == sorted(set(counts)) and counts[-1] < len(hashes(*calm_ranks)), (
        "every gang did some units"
    )
    assert_undisturbed(tmp_path, calm_ranks, found)


@pytest.mark.prove
@pytest.mark.parametrize("moment", range(10))
@pytest.mark.parametrize("victim", ["driver", "leader", "rank", "node"])
def test_a_kill_at_a_random_moment_changes_no_hash_and_doubles_no_unit(
    victim: Victim,
    moment: int,
    calm_ranks: tuple[Path, str],
    tiny_model: Path,
    tiny_adapters: Adapters,
    tmp_path: Path,
) -> None:
    draw = random.Random(f"{victim}{moment}")
    key = calm_ranks[1]
    prepared(calm_ranks[0], tmp_path)
    found = strike(
        tmp_path,
        key,
        tiny_model,
        tiny_adapters,
        [Strike(victim, draw.randrange(1, 12), draw.uniform(0, 0.3))],
        ranks=2,
    )
    assert run(tmp_path, tiny_model, list(tiny_adapters), ranks=2, sites=SITES).key == key
    assert_undisturbed(tmp_path, calm_ranks, found)
