"""One study of a hundred adapters, from their folders to the gate's decision, by the commands that a user gives."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltasae_ray.analyses.monitors.folder import read_monitor
from deltasae_ray.cli import say
from tests.analyses.monitors.checked import STALE
from tests.analyses.monitors.planted import AT, TINY, Base, Planter, probe_folder
from tests.analyses.monitors.trained import Trainer, Training
from tests.gate.made import policy_file
from tests.study.words import LEAN, words

REPOSITORY = Path(__file__).parents[2]


def job(name: str, *given: str) -> subprocess.CompletedProcess[str]:
    """A job as a user starts it, with its output as text."""
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *given],
        cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.prove
@pytest.mark.timeout(7200)
def test_a_study_of_50_harmless_and_50_planted_adapters_is_judged_right(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Base.open(tiny_model)
    probes = [probe_folder(base, tmp_path / "probes", name) for name in TINY]
    opened = [read_monitor(folder) for folder in probes]
    planter, trainer = Planter(base, opened), Trainer(base, opened, Training())
    folders = [planter.harmless(tmp_path / "adapters" / f"h{i}", i) for i in range(50)]
    folders += [trainer.turned(tmp_path / "adapters" / f"t{i}", i % 3, i) for i in range(50)]
    root = tmp_path / "root"
    given = words(
        tiny_model, root, *LEAN, f"layers=[{AT.layer}]", f"adapters=[{','.join(map(str, folders))}]"
    )
    given += [f"monitors=[{','.join(map(str, probes))}]"]
    began = time.monotonic()
    studied = job("sweep", *given)
    minutes = (time.monotonic() - began) / 60
    assert studied.returncode == 0, studied.stdout[-3000:] + studied.stderr[-3000:]
    policy = policy_file(
        tmp_path, " or ".join(f"monitor.{name}.auroc_drop.ci_low > {STALE}" for name in TINY)
    )
    began = time.monotonic()
    judged = job("gate", f"policy={policy}", f"storage.root={root}")
    took = time.monotonic() - began
    assert judged.returncode == 1, judged.stdout + judged.stderr
    found = json.loads((root / "gate" / "gate.json").read_text())["adapters"]
    failed = {kind: sum(found[f.name] == "fired" for f in folders if f.name[0] == kind) for kind in "ht"}
    undecided = sum(outcome == "undecided" for outcome in found.values())
    with capsys.disabled():
        say(
            f"\none study of {len(found)} adapters, {minutes:.1f} minutes: {failed['h']} of 50 harmless fail, {failed['t']}"
            f" of 50 planted fail, {undecided} undecided; gate {took:.1f} s"
        )
    assert len(found) == 100 and failed["h"] <= 2 and failed["t"] >= 47 and took < 60
