"""Divergence over a small study, by Ray tasks and without them."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.run import diverge_points, task_memory
from deltasae_ray.analyses.divergence.task import Group, measure_group, read_measures, read_rows
from deltasae_ray.analyses.geometry_figures import judge_missing
from deltasae_ray.analyses.leaf_spec import measures_key
from deltasae_ray.analyses.table import corrected, leaf_figures, read_table, write_table
from deltasae_ray.analyses.verdict import verdict
from deltasae_ray.analyses.verdict_figures import Against
from deltasae_ray.errors import DictionaryError, GeometryError, ResourceError
from deltasae_ray.metrics.absent_parts import UNKNOWN
from deltasae_ray.metrics.catalogue import BETWEEN, metric
from deltasae_ray.runtime.node_types import NodeType
from deltasae_ray.runtime.tasks import memory_asked, run_tasks
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage
from tests.analyses.made import ATOMS, KEY, LAYERS, atoms, make_leaves, make_study, save_dictionary

CFG = DivergeConfig(atoms=3, code_tokens=256, bootstrap=100)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def rows(study: Storage, ray_cluster: None) -> list:  # noqa: ARG001
    return diverge_points(study, KEY, make_leaves(study), CFG)


def value(rows: list, name: str, adapter: str = "r4", layer: int = 1) -> float | None:
    return next(r.value for r in rows if (r.name, r.adapter, r.layer) == (name, adapter, layer))


def test_rows_at_position_0_never_enter(study: Storage) -> None:
    rows = read_rows(open_harvest(study, KEY), make_leaves(study)[0])
    assert abs(rows.delta_eval).max() < 100 and abs(rows.base_eval).max() < 100
    assert len(rows.delta_eval) == len(rows.eval_docs) == 10 * 4 * 15


def test_every_leaf_has_rows_of_catalogued_metrics_with_values_or_reasons(rows: list) -> None:
    assert {(r.adapter, r.layer) for r in rows} == {(a, layer) for a in ("r2", "r4") for layer in LAYERS}
    for row in rows:
        assert metric(row.name)
        assert row.value is not None or row.reason
        assert UNKNOWN not in row.lacks and (
            row.value is None or row.ceiling is not None or "ceiling: " in row.lacks
        ), row
    assert 0.3 < (value(rows, "missing_share") or 0) < 0.95  # half of the atoms are the reference's


def test_adapters_are_compared_with_each_other(rows: list) -> None:
    between = [r for r in rows if r.metric == "max_cosine_adapters"]
    assert {(r.adapter, r.reference) for r in between} == {("r2", "r4")}
    assert all(r.value > 0.6 for r in between)  # they share half of their atoms
    missing = [r for r in rows if r.metric == "missing_share_adapters"]
    assert len(missing) == len(LAYERS) and all(0.3 < r.value < 0.95 and r.null == 1 for r in missing)


def test_a_second_run_measures_nothing(study: Storage, rows: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deltasae_ray.analyses.divergence.run.run_tasks",
        lambda work, *_, **__: pytest.fail("measured again") if work else None,
    )
    assert diverge_points(study, KEY, make_leaves(study), CFG) == rows


def test_a_changed_setting_or_dictionary_is_measured_anew(study: Storage, rows: list) -> None:  # noqa: ARG001
    leaf, shards = make_leaves(study)[0], open_harvest(study, KEY)
    other = dataclasses.replace(leaf, dictionary=make_leaves(study)[1].dictionary)
    keys = {
        measures_key(study, shards, x, c)
        for x, c in ((leaf, CFG), (other, CFG), (leaf, dataclasses.replace(CFG, bootstrap=CFG.bootstrap + 1)))
    }
    assert len(keys) == 3
    assert measures_key(study, shards, dataclasses.replace(leaf, reference_name="another name"), CFG) in keys


def test_a_task_gives_the_same_figures_as_a_plain_call(study: Storage, rows: list) -> None:
    leaf = next(x for x in make_leaves(study) if (x.adapter, x.layer) == ("r4", 1))
    measure_group(Group(study, KEY, (leaf,), ("measures/plain.json",), CFG))
    plain = read_measures(study, "measures/plain.json")
    for row in corrected([r for r in rows if (r.adapter, r.layer) == ("r4", 1) and r.metric not in BETWEEN]):
        assert plain[row.name].value == pytest.approx(row.value, rel=1e-4, abs=1e-5), row.name


def test_references_of_one_task_share_its_rows_and_nothing_else(study: Storage) -> None:
    """Two references for the same deltas in one task, and each in a task of its own: all figures agree to the
    last digit."""
    leaf, other = (
        next(x for x in make_leaves(study) if (x.adapter, x.layer) == (name, 1)) for name in ("r4", "r2")
    )
    control = save_dictionary(study, "control", atoms("base") + 0.01)
    leaves = (
        dataclasses.replace(leaf, beside=(("base_control", control), ("second", other.dictionary))),
        dataclasses.replace(leaf, reference=other.dictionary, dictionary=other.dictionary, seed=1),
    )
    assert leaves[0].shared == leaves[1].shared != other.shared
    measure_group(Group(study, KEY, leaves, ("measures/together-0.json", "measures/together-1.json"), CFG))
    for i, each in enumerate(leaves):
        measure_group(Group(study, KEY, (each,), (f"measures/alone-{i}.json",), CFG))
        assert read_measures(study, f"measures/alone-{i}.json") == read_measures(
            study, f"measures/together-{i}.json"
        )
    found = [read_measures(study, f"measures/together-{i}.json") for i in (0, 1)]
    assert (
        found[0]["delta_norm"] == found[1]["delta_norm"] and found[0]["monitor_r2"] != found[1]["monitor_r2"]
    )
    assert "max_cosine_base_control" in found[0] and "max_cosine_base_control" not in found[1]


def test_tasks_ask_for_the_memory_of_their_rows_and_for_no_more_than_a_node_has(
    study: Storage, ray_cluster: None
) -> None:  # noqa: ARG001
    shards, leaves = open_harvest(study, KEY), make_leaves(study)
    asked = task_memory(shards, leaves)
    rows = sum(u.tokens for split in ("fit", "eval") for u in shards.units(split))
    assert (
        6 * 4 * rows * shards.d_model
        < asked
        < task_memory(shards, [dataclasses.replace(leaves[0], d_sae=1 << 14)])
    )
    assert run_tasks([(len, "four")], 1.0, bar="len", memory=1 << 50) == [4], "cut, and not left waiting"


def test_a_task_is_cut_to_the_memory_of_a_node_that_can_run_it_and_refused_where_there_is_none() -> None:
    head, small, large = (
        NodeType("head", 0, memory=5e9),
        NodeType("small", 2, memory=16e9),
        NodeType("large", 8, memory=128e9),
    )
    assert memory_asked([head, large], 1, int(27e9)) == int(27e9), (
        "the head runs nothing, whatever memory it has"
    )
    assert memory_asked([head, small], 1, int(27e9)) == int(16e9) and memory_asked(
        [head, small, large], 4, int(200e9)
    ) == int(128e9)
    assert memory_asked(None, 1, int(27e9)) == int(27e9), "nodes come on demand, and nobody says of what kind"
    for nodes in ([head], [head, small], []):
        with pytest.raises(ResourceError, match="a task of 4 CPUs fits no node .*add a node with more CPUs"):
            memory_asked(nodes, 4, 1)


def test_the_table_is_written_twice_and_read_back(study: Storage, rows: list) -> None:
    write_table(study, rows)
    assert read_table(study) == rows
    table = pq.read_table(study.path("divergence.parquet"))
    assert table.num_rows == len(rows)
    assert table.column("value").null_count == sum(r.value is None for r in rows)
    assert "NaN" not in study.read_bytes("divergence.json").decode()
    assert table.to_pylist() == [r.flat for r in rows]


def test_p_is_corrected_over_layers_and_adapters_and_never_falls(study: Storage, rows: list) -> None:
    shards = open_harvest(study, KEY)
    for leaf in make_leaves(study):
        raw = read_measures(study, measures_key(study, shards, leaf, CFG))
        for row in (r for r in rows if (r.adapter, r.layer) == (leaf.adapter, leaf.layer) and r.name in raw):
            assert (row.p is None) == (raw[row.name].p is None)
            assert row.p is None or row.p >= raw[row.name].p


def test_the_verdict_reads_the_rows(rows: list) -> None:
    against = Against("toy reference (1,200 tokens)", atoms=CFG.atoms)
    found = verdict("r4", leaf_figures(rows, "r4"), [], against)
    assert found.label == "INCONCLUSIVE" and "which latents are visible was not measured" in found.text
    assert all(judge_missing(leaf).label == "PARTLY VISIBLE" for leaf in leaf_figures(rows, "r4"))
    assert {v.layer for v in found.layers} == set(LAYERS)
    assert "toy reference (1,200 tokens)" in found.text


def test_seeds_of_one_dictionary_get_rows_over_seeds_from_what_is_stored_and_the_verdict_is_theirs(
    study: Storage,
) -> None:
    first = next(x for x in make_leaves(study) if (x.adapter, x.layer) == ("r4", 1))
    rows = torch.nn.functional.normalize(
        atoms("r4") + 0.01 * torch.randn(ATOMS, 32, generator=torch.Generator().manual_seed(1)), dim=1
    )
    again = dataclasses.replace(
        first,
        seed=1,
        dictionary=save_dictionary(study, "r4-1-seed1", rows),
        beside=(("second", first.dictionary),),
    )
    leaves, shards = (
        [dataclasses.replace(first, beside=(("second", again.dictionary),)), again],
        open_harvest(study, KEY),
    )
    for leaf in leaves:
        measure_group(Group(study, KEY, (leaf,), (measures_key(study, shards, leaf, CFG),), CFG))
    found = {(r.name, r.flat["seed"]): r for r in diverge_points(study, KEY, leaves, CFG)}
    pooled, own = found["missing_share_seeds", None], [found["missing_share", seed] for seed in (0, 1)]
    assert pooled.value == pytest.approx(sum(r.value for r in own) / 2)
    assert (
        pooled.ci_low < min(r.ci_low for r in own) + 0.02
        and pooled.kappa_low < pooled.kappa < pooled.kappa_high
    )
    assert ("mean_share_seeds", None) not in found
    judged = verdict("r4", leaf_figures(found.values(), "r4"), [])
    assert f"Missing share of the change {pooled.measure:.2f} (mean over seeds)" in judged.text
    assert "2 training seeds (their spread is in the interval)" in judged.text


def test_a_folder_that_is_no_dictionary_is_refused_before_any_task(study: Storage, tmp_path: Path) -> None:
    leaf = dataclasses.replace(make_leaves(study)[0], reference=str(tmp_path))
    with pytest.raises(DictionaryError, match="no dictionary"):
        diverge_points(study, KEY, [leaf], CFG)


def test_a_reference_of_another_width_is_a_typed_error_from_the_task(
    study: Storage, ray_cluster: None
) -> None:  # noqa: ARG001
    from deltasae_ray.sae.dictionary import Dictionary

    ones = torch.ones(ATOMS)
    rows = torch.nn.functional.normalize(torch.randn(ATOMS, 16), dim=1)
    Dictionary(rows.T.contiguous(), rows, 0 * ones, torch.zeros(16), "topk", 3, 0.1 * ones, ones).save(
        study.local("dictionaries/narrow")
    )
    leaf = dataclasses.replace(make_leaves(study)[0], reference="dictionaries/narrow")
    with pytest.raises((DictionaryError, GeometryError), match="d_model"):
        diverge_points(study, KEY, [leaf], CFG)


def test_a_dictionary_of_dead_latents_is_refused(study: Storage) -> None:
    from deltasae_ray.sae.dictionary import Dictionary

    key = save_dictionary(study, "dead", torch.nn.functional.normalize(torch.randn(ATOMS, 32), dim=1))
    alive = Dictionary.load(study.local(key))
    dataclasses.replace(alive, firing=torch.zeros(ATOMS)).save(study.local(key))
    leaf = dataclasses.replace(make_leaves(study)[0], dictionary=key)
    with pytest.raises(GeometryError, match="dead"):
        measure_group(Group(study, KEY, (leaf,), ("measures/dead.json",), CFG))
