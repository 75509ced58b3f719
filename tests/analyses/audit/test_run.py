"""The audit from shards to rows: tasks, lens and causal effects of a real tiny adapter, found again, and
nothing undefined without a reason."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from deltasae_ray.analyses.audit.run import AuditResults, audit_groups, audit_study
from deltasae_ray.analyses.audit.table import STRENGTHS, AuditGroup, AuditRow, write_audit
from deltasae_ray.analyses.audit.task import FIRST, MEAN, AuditSpec, audit_leaves
from deltasae_ray.analyses.causal.run import DRAWS, TRIED, VARIANTS
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.lens.steering import RANDOM
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.fitting import fit_dictionary
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.controls import causal_passes
from tests.analyses.job import Job, job  # noqa: F401 - a fixture
from tests.harvest.study import run_units_here


def here(work: list, *_: Any, **__: Any) -> list:
    """`run_tasks` in this process."""
    return [function(argument) for function, argument in work]


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("audit.task", "lens.run"):
        monkeypatch.setattr(f"deltasae_ray.analyses.{module}.run_tasks", here)
    monkeypatch.setattr("deltasae_ray.runtime.context.run_units", run_units_here)


def audited(job: Job, *controls: str) -> AuditResults:  # noqa: F811
    return audit_study(
        job.context, job.harvest_key, leaves_of(job), replace(job.cfg, controls=controls), job.adapters
    )  # type: ignore[arg-type]


def leaves_of(job: Job) -> list[LeafSpec]:  # noqa: F811
    """With a second seed of the dictionary at layer 1, as a control leaves it."""
    shards = open_harvest(job.storage, job.harvest_key)
    rows = shards.read(1, "r4", split="fit")[shards.tokens("fit").position > 0]
    fit_dictionary(rows, d_sae=48, k=4, steps=80, seed=1).save(job.storage.local("dictionaries/r4-1-again"))
    return [
        replace(leaf, beside=(("second", "dictionaries/r4-1-again"),)) if leaf.layer == 1 else leaf
        for leaf in job.leaves
    ]


@pytest.fixture
def groups(job: Job) -> list[AuditGroup]:  # noqa: F811
    found = audited(job, "causal")
    assert {r.metric for r in found.rows} == {"latent_blind_energy", "latent_repeating_energy"}
    return audit_groups(found, lambda ids: f"<{ids}>")


def shown(group: AuditGroup, count: int) -> list[AuditRow]:
    """What is no latent, and the first latents by rank and by peak."""
    return [r for r in group.rows if r.latent is None or min(r.rank or 0, r.peak_rank or 0) <= count]


def test_every_latent_has_a_row_and_nothing_is_undefined_without_a_reason(groups: list[AuditGroup]) -> None:
    assert [(g.adapter, g.layer) for g in groups] == [("r4", 1), ("r4", 2)]
    for g in groups:
        assert [r.name for r in g.rows[:2]] == [MEAN, FIRST]
        assert [r.rank for r in g.rows if r.latent is not None] == list(range(1, g.alive + 1))
        assert sum(r.energy_share or 0 for r in g.rows if r.latent is not None) == pytest.approx(1)
        for r in g.rows:
            measures = [getattr(r, f.name) for f in fields(r) if f.type is Measure]
            assert all(m.value is not None or m.reason for m in measures)


def test_leading_latents_are_read_and_tried_against_random_directions(groups: list[AuditGroup]) -> None:
    for g in groups:
        tried = [r for r in g.rows if r.ablated.value is not None]
        assert [r.name for r in tried] == [MEAN] + [r.name for r in g.rows if r.rank in range(1, TRIED + 1)]
        assert all(m.null is not None and m.ceiling is not None for r in tried for m in (r.ablated, r.added))
        read = [r for r in g.rows if r.promoted]
        assert {r.name for r in read} == {r.name for r in shown(g, DivergeConfig().latents)}
        assert all(
            len(r.promoted) == 10 and r.lens_peak.null is not None and r.lens_peak.p is not None for r in read
        )
        assert {r.name for r in g.rows if r.steered} == {r.name for r in read}
        texts = [r.steered for r in read] + list(g.random_steered)
        assert all(len(t) == len(STRENGTHS) and t[0].startswith("The") for t in texts)
        assert len(set(texts)) > 1 and len(g.random_steered) == RANDOM


def test_one_seed_leaves_reproducibility_undefined_and_two_tell_it(groups: list[AuditGroup]) -> None:
    two, one = groups
    assert (
        two.known == two.alive and 0 < two.repeating <= two.known and two.repeating_energy.value is not None
    )
    assert one.known == 0 and "one training seed" in one.rows[2].reproducibility.reason
    assert any("ranked by energy alone" in note for note in one.notes)


def test_a_second_run_finds_it_done_and_says_the_same(
    job: Job,  # noqa: F811
    groups: list[AuditGroup],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deltasae_ray.analyses.audit.task.audit_leaf", lambda _: pytest.fail("audited again"))
    monkeypatch.setattr(
        "deltasae_ray.analyses.lens.run.run_tasks", lambda *_, **__: pytest.fail("read again")
    )
    monkeypatch.setattr("deltasae_ray.runtime.context.run_units", lambda *_: pytest.fail("run again"))
    found = audited(job, "causal")
    assert audit_groups(found, lambda ids: f"<{ids}>") == groups


def test_fast_controls_leave_causal_effects_undefined_and_say_so(job: Job, groups: list[AuditGroup]) -> None:  # noqa: F811
    found = audited(job, "fast")
    first, _ = audit_groups(found, lambda ids: f"<{ids}>")
    assert first.rows[0].ablated.value is None and "controls=causal" in first.rows[0].ablated.reason
    assert replace(first, rows=(), notes=()) == replace(groups[0], rows=(), notes=())


def test_where_fewer_latents_are_shown_fewer_are_tried(job: Job) -> None:  # noqa: F811
    found = audited(replace(job, cfg=replace(job.cfg, latents=1)), "causal")
    for g in audit_groups(found, lambda ids: f"<{ids}>"):
        tried = [r for r in g.rows if r.ablated.value is not None]
        assert [r.rank for r in tried[:2]] == [0, 1] and {r.name for r in tried} < {
            r.name for r in shown(g, 1)
        }


def test_the_files_hold_every_row_and_no_nan(job: Job, groups: list[AuditGroup]) -> None:  # noqa: F811
    write_audit(job.storage, groups)
    records = json.loads(job.storage.read_bytes("audit.json"))
    table = pq.read_table(job.storage.local("audit.parquet"))
    assert len(records) == table.num_rows == sum(len(g.rows) for g in groups)
    assert table.column_names == list(records[0]) and {
        f.name for f in fields(AuditRow) if f.type is not Measure
    } <= set(records[0])
    assert all(np.isfinite(x) for r in records for x in r.values() if isinstance(x, float))
    assert records[0]["ablated_null"] is not None and records[0]["promoted"]


def test_another_seed_or_reference_is_another_audit(job: Job) -> None:  # noqa: F811
    leaf = leaves_of(job)[0]
    keys = {
        audit_leaves(job.storage, job.harvest_key, [AuditSpec.of(each, [each])], job.cfg)[each].key
        for each in (leaf, replace(leaf, beside=()), replace(leaf, reference=leaf.dictionary))
    }
    assert len(keys) == 3


def test_the_plan_counts_continuations_of_both_models() -> None:
    model = SimpleNamespace(num_layers=4)
    asked = SimpleNamespace(
        cfg=StudyConfig(diverge=DivergeConfig(controls=("causal",))), model=model, layers=(1, 3)
    )
    assert causal_passes(asked, adapters=2) == 32 * (1 + 2 + 2 * 2 * VARIANTS * 0.5)  # type: ignore[arg-type]
    assert VARIANTS == 1 + (TRIED + 1) * (DRAWS + 1)
    assert causal_passes(SimpleNamespace(cfg=StudyConfig(), model=model, layers=(1,)), adapters=2) == 0  # type: ignore[arg-type]
