"""Monitors from folders to the table and the gate, on real text classes and adapters whose effect is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from deltasae_ray.shards.opening import open_harvest
from tests.analyses.monitors.checked import STALE, checked, figures, relative_strengths, without_ray
from tests.analyses.monitors.planted import AT, LENGTH, TINY, Base, Planter, World, probe_folder, world
from tests.analyses.monitors.trained import Trainer, Training
from tests.gate.made import finished_study, policy_file
from tests.tiny import D_MODEL

CFG, SHAPE = DivergeConfig(bootstrap=200), TextShape(LENGTH, 50)


@dataclass(frozen=True)
class Tiny:
    """The tiny model's probes, and who makes adapters of it."""

    folders: list[str]
    planter: Planter
    trainer: Trainer

    def adapters(self, folder: Path, harmless: int, turned: int) -> dict[str, Path]:
        """Adapters h0, h1, …; t0, t1, … each of which turns one probe; and one that stands for the random one."""
        made = {f"h{i}": self.planter.harmless(folder / f"h{i}", i) for i in range(harmless)}
        made |= {f"t{i}": self.trainer.turned(folder / f"t{i}", i % 3, i) for i in range(turned)}
        return made | {"null": self.planter.harmless(folder / "null", 1000)}


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    base, folder = Base.open(tiny_model), tmp_path_factory.mktemp("probes")
    folders = [probe_folder(base, folder, name) for name in TINY]
    probes = [read_monitor(f) for f in folders]
    return Tiny([str(f) for f in folders], Planter(base, probes), Trainer(base, probes, Training()))


@pytest.fixture(autouse=True, scope="module")
def _without_ray() -> Iterator[None]:
    with without_ray():
        yield


def rows_of(there: World, refs: Sequence[MonitorRef]) -> list[MonitorRow]:
    return monitor_rows(there.context, there.harvest_key, refs, there.adapters, CFG, SHAPE)


@pytest.fixture(scope="module")
def small(
    tiny: Tiny, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, tuple[MonitorRef, ...], list[MonitorRow]]:
    root = tmp_path_factory.mktemp("world")
    there = world(root, tiny_model, tiny.adapters(root / "adapters", 1, 2), random="null")
    refs = keep_monitors(there.context.storage, tiny.folders, D_MODEL, [AT])
    return there, refs, rows_of(there, refs)


def test_a_turned_probe_is_told_from_a_harmless_change_and_repair_returns_it(
    small: tuple[World, tuple[MonitorRef, ...], list[MonitorRow]],
) -> None:
    told = checked(small[2], TINY)
    assert (told.false_alarms, told.harmless, told.found, told.turned) == (0, 3, 2, 2)
    assert min(told.returned) >= 0.9
    found = figures(small[2])
    for name in TINY:
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
    shards = open_harvest(there.context.storage, there.harvest_key)
    base, change = (torch.from_numpy(shards.read(AT, source, split="eval")) for source in ("base", "t0"))
    before, stale, fixed = (
        own.token_scores(base),
        own.token_scores(base + change),
        repaired.token_scores(base + change),
    )
    assert np.corrcoef(before, stale)[0, 1] < 0 < 0.5 < np.corrcoef(before, fixed)[0, 1]


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
    tiny: Tiny, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = world(tmp_path, tiny_model, tiny.adapters(tmp_path / "adapters", 20, 20), random="null")
    refs = keep_monitors(there.context.storage, tiny.folders, D_MODEL, [AT])
    strengths, told = relative_strengths(there, AT), checked(rows_of(there, refs), TINY)
    with capsys.disabled():
        say(f"\n{told}; |delta|/|h| of harmless ones {min(strengths):.3f} or more")
    assert told.harmless == 60 and told.false_alarms <= 1 and min(strengths) >= 0.05
    assert told.turned == 20 and told.found >= 19 and min(told.returned) >= 0.9
