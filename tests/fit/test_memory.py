"""How many rows a worker may hold, by the memory that is its own."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.memory import HELD, describe_rows, machine_bytes, node_bytes, workers_on

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [("123456789\n", 123_456_789), ("max\n", PHYSICAL), (f"{2**62}\n", PHYSICAL)],
    ids=["a limit", "none", "none, as v1 says it"],
)
def test_a_container_has_what_its_limit_says_and_no_more_than_the_machine(
    tmp_path: Path, name: str, text: str, expected: int
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert machine_bytes(tmp_path) == expected
    assert machine_bytes(tmp_path / "nothing here") == PHYSICAL


def test_the_plan_says_when_the_rows_of_a_worker_cannot_be_held_and_what_to_do() -> None:
    memory = 8 * 10**9
    fits = describe_rows(int(HELD * memory / 2), 1, 2, memory)
    assert "CANNOT" not in fits and "1,000 MB a fit worker" in fits
    for told in (
        describe_rows(int(HELD * memory / 2), 1, 3, memory),
        describe_rows(int(HELD * memory / 2), 2, 2, memory),
    ):
        assert "CANNOT BE HELD" in told and "storage.deltas=stream" in told and "25% of 8,000 MB" in told


def test_a_worker_shares_its_node_with_those_that_fit_there_and_not_with_the_whole_cluster() -> None:
    cfg = FitConfig(max_concurrent_trials=8)
    assert workers_on({"CPU": 8}, cfg, 1) == 8 and workers_on({"CPU": 2}, cfg, 1) == 4
    assert (
        workers_on({"CPU": 8}, cfg, 4) == 16
        and workers_on({"CPU": 8}, replace(cfg, max_concurrent_trials=1), 4) == 4
    )
    assert workers_on({"CPU": 64, "GPU": 2}, replace(cfg, gpus_per_worker=1), 1) == 2
    assert workers_on({"CPU": 64, "GPU": 0.3}, replace(cfg, gpus_per_worker=0.1), 1) == 3, (
        "thirds of 0.3 are rounded"
    )
    assert workers_on({"CPU": 0.5}, cfg, 2, own=2) == 2, "they are there, whatever is listed"


@pytest.mark.slow
def test_a_worker_counts_what_ray_has_of_its_node(ray_cluster: None) -> None:
    import ray

    (node,) = ray.nodes()
    told = ray.get(ray.remote(num_cpus=0.1)(node_bytes).remote())
    assert told == min(machine_bytes(), int(node["Resources"]["memory"])) < PHYSICAL
