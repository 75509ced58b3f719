"""Monitors of Gemma 3 270M: three probes on real text classes, two adapters that leave them and two that turn one."""

from pathlib import Path

import pytest

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.monitors.folder import read_monitor
from deltasae_ray.analyses.monitors.kept import keep_monitors
from deltasae_ray.analyses.monitors.run import TextShape, monitor_rows
from deltasae_ray.cli import say
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.source import resolve_model
from tests.analyses.monitors.checked import checked, figures, relative_strengths, without_ray
from tests.analyses.monitors.planted import Base, probe_folder, world
from tests.analyses.monitors.trained import Trainer, Training

AT, LENGTH, TEXTS = Hookpoint(9), 20, 100
PROBES = ("scripture", "question", "manual")
TRAINING = Training(TEXTS, steps=40, batch=16, lr=2e-3, blocks=3)


@pytest.mark.demo
@pytest.mark.prove
def test_of_four_adapters_those_that_turn_a_probe_are_flagged_and_repair_returns_what_was_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = resolve_model(ModelConfig())
    base = Base.open(model.folder, AT, LENGTH)
    folders = [probe_folder(base, tmp_path / "probes", name, TEXTS) for name in PROBES]
    trainer = Trainer(base, [read_monitor(folder) for folder in folders], TRAINING)
    adapters = {f"h{i}": trainer.harmless(tmp_path / f"h{i}", i) for i in range(2)}
    adapters |= {f"t{i}": trainer.turned(tmp_path / f"t{i}", i, i) for i in range(2)}
    adapters |= {"null": trainer.harmless(tmp_path / "null", 1000)}
    del trainer, base
    with without_ray():
        there = world(tmp_path, model.folder, adapters, random="null", at=AT, tokens=4000)
        refs = keep_monitors(there.context.storage, [str(f) for f in folders], model.d_model, [AT])
        cfg, shape = DivergeConfig(bootstrap=400), TextShape(LENGTH, 50)
        rows = monitor_rows(there.context, there.harvest_key, refs, there.adapters, cfg, shape)
    told, strengths = checked(rows, PROBES), relative_strengths(there, AT)
    with capsys.disabled():
        say(f"\n{told}; |delta|/|h| of harmless ones {min(strengths):.3f} or more")
        for (adapter, probe), m in figures(rows).items():
            say(
                f"  {adapter} {probe}: "
                + ", ".join(f"{k} {m[k]:.3f}" for k in ("auroc", "auroc_drop", "repaired_drop", "staleness"))
            )
    assert told.harmless == 6 and told.false_alarms == 0 and min(strengths) >= 0.05
    assert told.turned == told.found == 2 and min(told.returned) >= 0.9
