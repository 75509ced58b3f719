"""A streamed study: harvest beside fit, what it refuses and plans; under `make prove` also killed whole,
continued, and held against a calm one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.errors import ConfigError
from deltasae_ray.fit import checkpoint
from deltasae_ray.fit.run import fitted_points
from deltasae_ray.harvest.worker import HarvestWorker
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.opening import open_shards
from deltasae_ray.storage import Storage
from deltasae_ray.study.inputs import stream_of
from deltasae_ray.study.main import main
from deltasae_ray.study.run import run
from deltasae_ray.study.state import StudyState
from deltasae_ray.study.statements import study_statements
from deltasae_ray.study.streaming import Windows, fit_stream
from tests.fit.made import make_unit
from tests.study.streamed import SMALL, STREAM, config, study_words, without_ray
from tests.study.words import words

REPOSITORY = Path(__file__).parents[2]


class Watch:
    """What is seen of a root while a study runs on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.most, self.windows = root, 0, set[str]()

    def look(self) -> None:
        there = {p.parts[-4] for p in self.root.glob("spool/*/*/sources/*/*.parquet")}
        self.windows |= there
        self.most = max(self.most, len(there))

    def until(self, reached: Callable[[], bool], process: subprocess.Popen) -> None:
        deadline = time.monotonic() + 900
        while not reached():
            assert time.monotonic() < deadline
            self.look()
            time.sleep(0.02)
            if process.poll() is not None:
                return


def start(job: str, command: list[str], log: Path) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(REPOSITORY)
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, f"jobs/{job}.py", *command],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@pytest.mark.prove
def test_a_streamed_study_that_is_killed_and_continued_has_the_dictionaries_of_a_calm_one_and_two_windows_on_disk(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, root, log = tiny_adapters[0], tmp_path / "root", tmp_path / "log"
    study, made, way = without_ray(
        config(study_words(tiny_model, tmp_path / "calm", adapter, *SMALL)), monkeypatch, side_by_side=False
    )
    shutil.copytree(tmp_path / "calm", root)  # what stays is there: no gang need start for it
    way.fit()
    monkeypatch.undo()
    assert len(way.plan) >= 4 and made.harvest is not None
    command, storage, watch = study_words(tiny_model, root, adapter, *SMALL), Storage(str(root)), Watch(root)

    # first in turns: this gang asks for more than a fit worker leaves
    first = start("fit", [*command, "gangs.cpus_per_gang=1.5"], log)
    second_window = way.plan[1].begins
    watch.until(
        lambda: any(checkpoint.steps_done(storage, key) > second_window for key in way.keys.values()), first
    )
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, log.read_text()[-3000:]
    assert not list(root.glob("dictionaries/*/manifest.json")), "the kill came too late"

    second = start("fit", command, log)  # and then side by side
    watch.until(lambda: False, second)
    said = log.read_text()
    assert second.returncode == 0, said[-3000:]
    assert "harvest beside fit" in said
    assert watch.most <= 2 and len(watch.windows) == len(way.plan) - 1
    assert not list(root.glob("spool/*"))

    theirs = fitted_points(storage, made.harvest.key, way.points, study.cfg.fit)
    ours = fitted_points(study.storage, made.harvest.key, way.points, study.cfg.fit)
    assert {p: f.digest for p, f in theirs.items()} == {p: f.digest for p, f in ours.items()} and len(
        ours
    ) == len(way.points)
    kept = {row.unit for row in Manifest.load(storage, made.harvest.key).rows}
    assert kept == {u.name for u in study.kept.units} and len(
        list(root.rglob("harvest/**/*.parquet"))
    ) == 2 * len(kept)
    assert len(open_shards(str(root)).read(1, "r2", split="fit")) == way.stream.tokens[0]

    # all is found: nothing of this needs Ray; a size that is added later needs every window
    again = StudyState(by_tune=True, adapters=study.given, harvest=made.harvest)
    fit_stream(replace(study, storage=storage), again)
    assert sum(map(len, again.grid.values())) + len(again.controls) == len(way.points) and not again.failed
    larger = replace(
        study, storage=storage, cfg=replace(study.cfg, fit=replace(study.cfg.fit, d_sae=(48, 64)))
    )
    assert (
        Windows.of(larger, made).needed() == list(range(len(way.plan)))
        and Windows.of(replace(study, storage=storage), made).needed() == []
    )


@pytest.mark.prove
def test_a_streamed_sweep_ends_with_a_report_that_says_so(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    assert start("sweep", study_words(tiny_model, root, tiny_adapters[0]), log).wait(900) == 0, (
        log.read_text()[-3000:]
    )
    assert "Deltas were streamed" in (root / "report.html").read_text() and not list(root.glob("spool/*"))


def test_harvest_beside_fit_waits_for_it_and_gives_what_turns_give(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests, most = [], 0
    write = HarvestWorker.write

    def seen(self: HarvestWorker, *args: Any, **words: Any) -> int:
        nonlocal most
        done = write(self, *args, **words)
        most = max(most, len({p.parts[-4] for p in tmp_path.glob("beside/spool/*/*/sources/*/*.parquet")}))
        return done

    monkeypatch.setattr(HarvestWorker, "write", seen)
    for name in ("beside", "turns"):
        command = study_words(
            tiny_model, tmp_path / name, tiny_adapters[0], *SMALL, "storage.window_tokens=420"
        )
        study, made, way = without_ray(config(command), monkeypatch, side_by_side=name == "beside")
        assert len(way.plan) > 5
        fit_stream(study, made)
        digests.append(
            {f.point: f.digest for group in (made.controls.values(), *made.grid.values()) for f in group}
        )
        assert any(said.startswith("Deltas were streamed") for said in study_statements(study))
    assert digests[0] == digests[1] and len(digests[0]) == len(way.points) and most == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("fit.search=asha",), "fit.search=asha and storage.deltas=stream"),
        (
            ("fit.steps=4",),
            "fit.steps=4 of fit.batch_tokens=128 see 512 tokens, fewer than the 720 of the fit split",
        ),
        (("storage.window_tokens=100",), "storage.window_tokens=100 is below fit.batch_tokens=128"),
    ],
)
def test_settings_that_contradict_a_stream_are_typed_errors(
    more: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    units = Corpus(tuple(make_unit(index) for index in range(30)), ())
    with pytest.raises(ConfigError, match=said):
        stream_of(config(words(tmp_path, tmp_path, *STREAM, *more)), units)


def test_too_few_steps_for_the_text_are_an_error_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit.steps=4 .* fewer than the 2,[0-9]+ of the fit split"):
        run("sweep", config(words(tiny_model, tmp_path / "root", *STREAM, "fit.steps=4")))
    assert not any((tmp_path / "root").iterdir()), (
        "nothing was made, and the claim on the root was taken back"
    )


def test_the_harvest_job_alone_cannot_stream(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs/sweep.py"):
        run("harvest", config(words(tiny_model, tmp_path / "root", *STREAM)))


@pytest.mark.parametrize("chosen", ["stored", "stream"])
def test_the_plan_prints_bytes_and_minutes_of_both_ways(
    chosen: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    way = (f"storage.deltas={chosen}", "corpus.fit_tokens=60000", "fit.steps=1000", "dry_run=true")
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words(tiny_model, tmp_path / "root", *STREAM, *way)])
    main("sweep", None)
    lines = {
        line.split("  ")[-2].split("=")[1]: line
        for line in capsys.readouterr().out.splitlines()
        if " storage.deltas=" in line
    }
    assert set(lines) == {"stored", "stream"} and "→" in lines[chosen]
    assert all("MB, harvest and fit about" in line and "minutes" in line for line in lines.values())
    assert (
        "covariances come from the first" in lines["stream"]
        and "needs a new harvest" in lines["stream"]
        and "Tune" in lines["stream"]
    )
