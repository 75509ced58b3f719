"""The harvest on real Ray, with a tiny model."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import deltas, unit_ids
from deltasae_ray.models.load import load_model
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage
from tests.harvest.study import corpus, hashes, run

pytestmark = pytest.mark.slow
Adapters = tuple[Path, Path]


@pytest.fixture(scope="module")
def calm(ray_cluster: None, tiny_model: Path, tiny_adapters: Adapters, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed harvest of two adapters, its root and key."""
    root = tmp_path_factory.mktemp("calm")
    return root, run(root, tiny_model, list(tiny_adapters)).key


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
                    dict(deltas(model, unit_ids(u), [Hookpoint(layer)], ["r2", "r4"]))[source][Hookpoint(layer)][
                        torch.tensor(u.mask)
                    ].numpy()
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


def test_two_zero3_ranks_write_every_unit_once_and_the_deltas_of_one_process(
    calm: tuple[Path, str], tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    done = run(tmp_path, tiny_model, list(tiny_adapters), ranks=2, random_lora=False)
    assert len(corpus(tiny_model).units) % 2 == 1, "an odd count of units, so that one rank must pad"
    assert hashes(tmp_path, done.key).keys() < hashes(*calm).keys()
    sharded, whole = open_shards(f"{tmp_path}/{done.key}"), open_shards(f"{calm[0]}/{calm[1]}")
    for source in ("base", "r2", "r4"):
        ours, theirs = sharded.read(2, source), whole.read(2, source)
        # float16 on disk: what fp32 rounds otherwise may fall to the other side of a half
        assert np.linalg.norm(ours - theirs) <= 5e-4 * np.linalg.norm(theirs)
        assert np.abs(ours - theirs).mean() <= 1e-5 * np.abs(theirs).mean()


def disturbed(root: Path, model: Path, adapters: Adapters, key: str, victim: str, records: int, wait: float = 0.0, ranks: int = 1) -> None:
    """A harvest in a process of its own, with a Ray of its own; `victim` is killed once so many units count. A dead driver stays dead."""
    words = [sys.executable, "-m", "tests.harvest.study", str(ranks), str(root), str(model), *map(str, adapters)]
    log, rows = root / "driver.log", root / key / "rows"
    with log.open("wb") as output:
        driver = subprocess.Popen(words, stdout=output, stderr=output)
    deadline = time.monotonic() + 800
    while time.monotonic() < deadline and len(list(rows.glob("*.json")) if rows.exists() else []) < records and driver.poll() is None:
        time.sleep(0.05)
    assert driver.poll() is None, f"the harvest ended before the kill: {log.read_text()[-3000:]}"
    time.sleep(wait)
    children = psutil.Process(driver.pid).children(recursive=True)
    if victim != "driver":
        (struck, *_) = [c for c in children if VICTIMS[victim] in " ".join(c.cmdline())]
        struck.kill()
        assert driver.wait(timeout=800) == 0, log.read_text()[-3000:]
        return
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    for child in children:  # its Ray dies with it, and ours does not
        if child.is_running():
            child.kill()


VICTIMS = {"leader": "MapBatches(Gang)", "rank": "ray::Rank"}


def test_a_killed_driver_continues_and_ends_with_the_same_hashes(
    calm: tuple[Path, str], tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    disturbed(tmp_path, tiny_model, tiny_adapters, calm[1], "driver", records=3)
    counted = {row.file for row in Manifest.load(Storage(str(tmp_path)), calm[1]).rows}
    assert counted, "the kill came before the first unit"
    files = {tmp_path / calm[1] / file: (tmp_path / calm[1] / file).stat().st_mtime_ns for file in counted}
    assert run(tmp_path, tiny_model, list(tiny_adapters)).key == calm[1]
    assert hashes(tmp_path, calm[1]) == hashes(*calm)
    assert {p: p.stat().st_mtime_ns for p in files} == files, "a unit that counted was done again"


@pytest.fixture(scope="module")
def calm_ranks(ray_cluster: None, tiny_model: Path, tiny_adapters: Adapters, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed harvest by two ranks: one pass for all adapters rounds otherwise than one pass each."""
    root = tmp_path_factory.mktemp("calm-ranks")
    return root, run(root, tiny_model, list(tiny_adapters), ranks=2).key


@pytest.mark.prove
@pytest.mark.parametrize("moment", range(10))
@pytest.mark.parametrize("victim", ["driver", "leader", "rank"])
def test_a_kill_at_a_random_moment_changes_no_hash_and_doubles_no_unit(
    victim: str, moment: int, calm_ranks: tuple[Path, str], tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    draw = random.Random(f"{victim}{moment}")
    key = calm_ranks[1]
    disturbed(tmp_path, tiny_model, tiny_adapters, key, victim, draw.randrange(1, 12), draw.uniform(0, 0.3), ranks=2)
    assert run(tmp_path, tiny_model, list(tiny_adapters), ranks=2).key == key
    assert hashes(tmp_path, key) == hashes(*calm_ranks)
    identities = [row.identity for row in Manifest.load(Storage(str(tmp_path)), key).rows]
    assert len(identities) == len(set(identities))
    open_shards(f"{tmp_path}/{key}").verify()
