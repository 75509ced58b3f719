"""Loss recovered from shards to the table: forward passes of a real tiny adapter, measured once."""

import pytest

from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.loss_recovered.run import judged, recovered_rows
from deltasae_ray.metrics.catalogue import METRICS, PATCHED
from tests.analyses.job import Job, job  # noqa: F401 - a fixture
from tests.harvest.study import run_units_here


def test_only_the_largest_dictionaries_of_the_first_seed_are_judged() -> None:
    leaves = [
        LeafSpec("r2", 1, d, 4, "topk", seed, 2, 0, f"{d}-{seed}", "ref") for d in (32, 64) for seed in (0, 1)
    ]
    left = LeafSpec("r4", 1, 32, 4, "topk", 0, 4, 0, "r4's 64 failed", "ref")
    assert [leaf.dictionary for leaf in judged([*leaves, left])] == ["64-0", "r4's 64 failed"]


def test_rows_reach_the_table_and_are_measured_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def rows() -> list:
        return recovered_rows(job.context, job.harvest_key, job.leaves, job.cfg, job.adapters)

    monkeypatch.setattr("deltasae_ray.runtime.context.run_units", run_units_here)
    first = rows()
    assert {(r.layer, r.metric) for r in first} == {
        (layer, m) for layer in (1, 2) for m in METRICS if m.startswith(PATCHED)
    }
    assert all(r.value is not None or r.reason for r in first)
    for r in first:
        stored = next(k for k in job.storage.list("recovered") if k.endswith(".json"))
        documents = [row["doc_id"] for row in job.storage.read_json(stored)["rows"]]
        assert len(documents) == len(set(documents)) == r.n > 3 or r.value is None
    monkeypatch.setattr("deltasae_ray.runtime.context.run_units", lambda *_: pytest.fail("measured again"))
    assert rows() == first
