"""Monitors from folders to the table and the gate, on real text classes and adapters whose effect is known."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.monitors.folder import read_monitor
from deltasae_ray.analyses.monitors.kept import MonitorRef, keep_monitors
from deltasae_ray.analyses.monitors.run import TextShape, monitor_rows
from deltasae_ray.analyses.monitors.table import MonitorRow, monitor_lines, write_monitors
from deltasae_ray.cli import say
from deltasae_ray.gate.run import GateConfig, RootConfig, judge
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.shards.opening import open_harvest
from tests.analyses.monitors.planted import AT, LENGTH, READS, Base, Planter, World, probe_folder, world
from tests.gate.made import finished_study, policy_file
from tests.harvest.study import run_units_here
from tests.tiny import D_MODEL

CFG, SHAPE = DivergeConfig(bootstrap=200), TextShape(LENGTH, 50)
STALE = 0.02
"""Lower end of a fall of AUROC from which a monitor counts as stale."""


@pytest.fixture(scope="module")
def planter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Planter, list[Path]]:
    base, folder = Base.open(tiny_model), tmp_path_factory.mktemp("probes")
    folders = [probe_folder(base, folder, name) for name in READS]
    return Planter(base, [read_monitor(f) for f in folders]), folders


@pytest.fixture(autouse=True, scope="module")
def _without_ray() -> Iterator[None]:
    """What is run, in this process: who runs it where is tested elsewhere."""

    def here(work: Sequence[tuple[Any, Any]], *_: object, **__: object) -> list[Any]:
        return [function(argument) for function, argument in work]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltasae_ray.runtime.context.run_units", run_units_here)
        patch.setattr("deltasae_ray.analyses.monitors.repairs.run_tasks", here)
        yield


def planted(planter: Planter, folder: Path, harmless: int, turned: int) -> dict[str, Path]:
    """Adapters h0, h1, …; t0, t1, … each of which turns one probe; and one that stands for the random one."""
    made = {f"h{i}": planter.harmless(folder / f"h{i}", i) for i in range(harmless)}
    made |= {f"t{i}": planter.turned(folder / f"t{i}", planter.probes[i % 3], i) for i in range(turned)}
    return made | {"null": planter.harmless(folder / "null", 1000)}


def rows_of(there: World, refs: Sequence[MonitorRef]) -> list[MonitorRow]:
    return monitor_rows(there.context, there.harvest_key, refs, there.adapters, CFG, SHAPE)


def figures(rows: Sequence[MonitorRow]) -> dict[tuple[str, str], dict[str, Measure]]:
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for row in rows:
        _, name, figure = row.metric.split(".")
        found.setdefault((row.adapter, name), {})[figure] = row.measure
    return found


def is_flagged(m: dict[str, Measure]) -> bool:
    ci = m["auroc_drop"].ci
    return ci is not None and ci[0] > STALE


@pytest.fixture(scope="module")
def small(
    planter: tuple[Planter, list[Path]], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, tuple[MonitorRef, ...], list[MonitorRow]]:
    root = tmp_path_factory.mktemp("world")
    there = world(root, tiny_model, planted(planter[0], root / "adapters", 1, 2), random="null")
    refs = keep_monitors(there.context.storage, [str(f) for f in planter[1]], D_MODEL, [AT])
    return there, refs, rows_of(there, refs)


def check(rows: Sequence[MonitorRow]) -> tuple[int, int, int, int, list[float]]:
    """(harmless pairs flagged, of how many, turned flagged, of how many, shares of AUROC that repair returned)."""
    found = figures(rows)
    harmless = [is_flagged(m) for (adapter, _), m in found.items() if adapter.startswith("h")]
    own = {
        adapter: found[adapter, list(READS)[int(adapter[1:]) % 3]]
        for adapter, _ in found
        if adapter.startswith("t")
    }
    returned = [m["recovered"].value for m in own.values() if m["recovered"].value is not None]
    return sum(harmless), len(harmless), sum(map(is_flagged, own.values())), len(own), returned


def test_a_turned_probe_is_told_from_a_harmless_change_and_repair_returns_it(
    small: tuple[World, tuple[MonitorRef, ...], list[MonitorRow]],
) -> None:
    flagged, pairs, turned, adapters, returned = check(small[2])
    assert (flagged, pairs, turned, adapters) == (0, 3, 2, 2)
    assert len(returned) == 2 and min(returned) >= 0.9
    found = figures(small[2])
    for name in READS:
        assert (
            0
            < abs(found["h0", name]["staleness"].value or 0)
            < 0.2
            < 0.5
            < (found["h0", name]["auroc"].value or 0)
        )
    turned_own = found["t0", "capitals"]
    assert (turned_own["staleness"].value or 0) > 1 > 0.2 > (turned_own["staleness"].null or 1)
    assert turned_own["auroc_drop"].p is not None and turned_own["auroc_drop"].p < 0.001
    assert abs(turned_own["auroc_drop"].null or 1) < 0.05, "the null is what another adapter does"
    assert (turned_own["auroc"].ceiling or 0) > (turned_own["auroc"].value or 1), "a retrained probe works"


def test_what_is_stored_is_not_made_again_and_repaired_monitors_lie_below_the_root(
    small: tuple[World, tuple[MonitorRef, ...], list[MonitorRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, refs, rows = small
    monkeypatch.setattr("deltasae_ray.runtime.context.run_units", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(
        "deltasae_ray.analyses.monitors.repairs.run_tasks",
        lambda work, *_, **__: work and pytest.fail("again"),
    )
    assert rows_of(there, refs) == rows
    folder = there.context.storage.local("monitors/repaired/t0/capitals")
    own, repaired = read_monitor(there.context.storage.local(refs[0].key)), read_monitor(folder)
    assert repaired.hookpoint == own.hookpoint and repaired.weight is not None and own.weight is not None
    alike = torch.nn.functional.cosine_similarity(repaired.weight, own.weight, 0)
    assert alike < -0.9, "the probe was reversed, and the repair reverses it again"


def test_a_policy_can_name_figures_of_monitors(
    small: tuple[World, tuple[MonitorRef, ...], list[MonitorRow]], tmp_path: Path
) -> None:
    storage = finished_study(tmp_path, dict.fromkeys(("h0", "t0", "t1"), {}))
    write_monitors(storage, small[2])
    for rule, codes in (
        (f"monitor.capitals.auroc_drop.ci_low > {STALE}", {"h0": "clear", "t0": "fired", "t1": "clear"}),
        (f"monitor.question.auroc_drop.ci_low > {STALE}", {"h0": "clear", "t0": "clear", "t1": "fired"}),
        ("monitor.capitals.staleness > 0.5", {"h0": "clear", "t0": "fired"}),
    ):
        policy = policy_file(tmp_path, rule)
        assert judge(GateConfig(str(policy), RootConfig(str(tmp_path)))) == 1
        found = storage.read_json("gate/gate.json")["adapters"]
        assert {name: found[name] for name in codes} == codes
    lines = monitor_lines(small[2])
    assert len(lines) == 9 and lines[0].startswith("Monitor capitals under h0: AUROC drop ")
    write_monitors(storage, [])
    assert not storage.exists("monitors.json"), "rows of an earlier run are no rows of this one"


@pytest.mark.prove
def test_of_20_harmless_and_20_turned_adapters_the_turned_are_flagged(
    planter: tuple[Planter, list[Path]], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = world(tmp_path, tiny_model, planted(planter[0], tmp_path / "adapters", 20, 20), random="null")
    refs = keep_monitors(there.context.storage, [str(f) for f in planter[1]], D_MODEL, [AT])
    strengths = relative_strengths(there)
    flagged, pairs, turned, adapters, returned = check(rows_of(there, refs))
    with capsys.disabled():
        say(
            f"\nharmless: {flagged} of {pairs} (adapter, probe) flagged, |delta|/|h| {min(strengths):.3f} or more;"
            f" turned: {turned} of {adapters} flagged; repair returned {min(returned):.3f} or more of the AUROC"
        )
    assert pairs == 60 and flagged <= 1 and min(strengths) >= 0.05
    assert adapters == 20 and turned >= 19 and min(returned) >= 0.9


def relative_strengths(there: World) -> list[float]:
    """Mean ‖δ‖/‖h‖ of the harmless adapters, on the evaluation text."""
    shards = open_harvest(there.context.storage, there.harvest_key)
    kept = shards.tokens("eval").position > 0
    base = np.linalg.norm(shards.read(AT, "base", split="eval")[kept], axis=1)
    names = [a.name for a in there.adapters if a.name.startswith("h")]
    return [
        float((np.linalg.norm(shards.read(AT, n, split="eval")[kept], axis=1) / base).mean()) for n in names
    ]


@pytest.mark.prove
def test_a_gate_over_50_harmless_and_50_planted_adapters_tells_them_apart(
    planter: tuple[Planter, list[Path]], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = world(tmp_path, tiny_model, planted(planter[0], tmp_path / "adapters", 50, 50), random="null")
    refs = keep_monitors(there.context.storage, [str(f) for f in planter[1]], D_MODEL, [AT])
    names = [a.name for a in there.adapters if a.kind == "adapter"]
    storage = finished_study(tmp_path / "study", dict.fromkeys(names, {}))
    write_monitors(storage, rows_of(there, refs))
    policy = policy_file(
        tmp_path, " or ".join(f"monitor.{name}.auroc_drop.ci_low > {STALE}" for name in READS)
    )
    began = time.monotonic()
    assert judge(GateConfig(str(policy), RootConfig(storage.root))) == 1
    took, found = time.monotonic() - began, storage.read_json("gate/gate.json")["adapters"]
    failed = {kind: sum(found[n] == "fired" for n in names if n.startswith(kind)) for kind in "ht"}
    undecided = sum(outcome == "undecided" for outcome in found.values())
    with capsys.disabled():
        say(
            f"\nharmless: {failed['h']} of 50 fail; planted: {failed['t']} of 50 fail; {undecided} undecided;"
            f" {took:.1f} s"
        )
    assert failed["h"] <= 2 and failed["t"] >= 47 and took < 60
