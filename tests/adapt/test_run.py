"""Adapters through real Ray Train: named by content, never trained twice, and unharmed by kill -9."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.adapt.run import adapt, drop_half_written, trained, trainings
from deltasae_ray.adapt.text import split_text
from deltasae_ray.adapt.trainer import LoraTrainer
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.errors import AdapterError, CorpusError
from deltasae_ray.models.adapter_check import check_adapter
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, content_digest
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model, load_model
from deltasae_ray.models.source import resolve_model
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.sae.threads import cores, threads
from deltasae_ray.storage import Storage
from tests.adapt.worlds import config, contexts

CORPUS = Corpus((), contexts())
KILLABLE = config(ranks=(4,), max_tokens=5000, stop_at_se=1000.0, dropout=0.1)
"""Some 110 steps, a checkpoint every fourth: killed after two of these, and so before most steps are
taken."""


def files(storage: Storage, ref: AdapterRef) -> tuple[bytes, bytes]:
    return storage.read_bytes(f"{ref.key}/{WEIGHTS}"), storage.read_bytes(f"{ref.key}/{CONFIG}")


def test_keys_follow_what_an_adapter_depends_on_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    source = resolve_model(ModelConfig(str(tiny_model)))

    def key(corpus: Corpus = CORPUS, **changes: object) -> str:
        return trainings(source, corpus, config(ranks=(4,), **changes))[0].key

    same = key()
    assert key(seeds=1) == same
    assert key(targets=("down_proj", "o_proj", "q_proj")) == same
    different = [
        {"lr": 1e-4},
        {"dropout": 0.1},
        {"targets": ("q_proj",)},
        {"max_tokens": 601},
        {"batch_contexts": 3},
        {"stop_at_se": 4.0},
    ]
    keys = [key(**d) for d in different] + [key(Corpus((), contexts()[1:]))]
    assert len({same, *keys}) == 1 + len(keys)
    assert [t.name for t in trainings(source, CORPUS, config(ranks=(4, 2)))] == ["r4", "r2"]
    assert [t.name for t in trainings(source, CORPUS, config(ranks=(4,), seeds=2))] == ["r4-s0", "r4-s1"]
    assert trained(Storage(str(tmp_path)), trainings(source, CORPUS, config())[0]) is None


def test_bad_input_is_refused_before_ray_is_needed(tiny_model: Path, tmp_path: Path) -> None:
    storage, model = Storage(str(tmp_path)), ModelConfig(str(tiny_model))
    with pytest.raises(AdapterError, match=r"no linear module \['c_attn'\]; they have: down_proj, gate_proj"):
        adapt(storage, model, CORPUS, config(targets=("c_attn",)), GangConfig())
    with pytest.raises(CorpusError, match="too few to train an adapter on"):
        adapt(storage, model, Corpus((), contexts(documents=3)), config(), GangConfig())
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The adapter of a training without Ray or disturbance."""
    folder = tmp_path_factory.mktemp("calm")
    with threads(
        cores()
    ):  # as a worker that has the machine to itself; other counts may sum in another order
        trainer = LoraTrainer(
            load_model(tiny_model),
            split_text(CORPUS.adapt, KILLABLE.batch_contexts),
            KILLABLE,
            rank=4,
            seed=0,
        )
        while not trainer.progress.done:
            trainer.advance()
    trainer.write_adapter(folder, tiny_model.name)
    return (folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_bytes()


def checkpointed(root: Path, steps: int) -> Callable[[], bool]:
    """Whether the run below `root` has seen at least `steps` checkpoints: folders come and go, so their names
    are gathered."""
    seen: set[str] = set()

    def enough() -> bool:
        seen.update(p.name for p in root.glob("adapters/.train/*/checkpoint_*") if p.is_dir())
        return len(seen) >= steps

    return enough


def train_workers() -> list[int]:
    """Process ids of Train workers that descend from this process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, names[int(entry.name)] = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid, name in names.items() if b"TrainWorker" in name and ours(pid)]


def killing(when: Callable[[], bool], most: int = 1) -> list[int]:
    """Kills at most `most` Train workers, once, as soon as `when` says so; their process ids, once they are
    dead."""
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            if when():
                for pid in train_workers()[:most]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.02)

    threading.Thread(target=kill, daemon=True).start()
    return killed


@pytest.mark.prove
def test_a_killed_worker_leaves_the_adapter_of_a_calm_run(
    undisturbed: tuple[bytes, bytes], ray_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    killed = killing(checkpointed(tmp_path, 2))
    storage = Storage(str(tmp_path))
    (ref,) = adapt(storage, ModelConfig(str(tiny_model)), CORPUS, KILLABLE, GangConfig())
    assert killed
    assert files(storage, ref) == undisturbed


DRIVER = """
import sys
from deltasae_ray.runtime.local import join
join(address=sys.argv[1], log_to_driver=False)
from deltasae_ray.adapt.run import adapt
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.storage import Storage
from tests.adapt.test_run import CORPUS, KILLABLE
adapt(Storage(sys.argv[2]), ModelConfig(sys.argv[3]), CORPUS, KILLABLE, GangConfig())
"""


def kill_a_driver(root: Path, model: Path) -> None:
    """Trains until two checkpoints are there, in a process that is then killed."""
    import ray

    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, str(root), str(model)], cwd=Path(__file__).parents[2]
    )
    enough = checkpointed(root, 2)
    while not enough():
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.02)
    driver.kill()
    driver.wait()


@pytest.mark.slow  # make test kills a driver in tests/fit, whose Ray Train is the same
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.prove)])
def test_ctrl_c_leaves_what_the_same_call_finishes_and_a_new_rank_trains_only_itself(
    undisturbed: tuple[bytes, bytes],
    ray_cluster: None,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    root = tmp_path / "study"
    if killed:
        kill_a_driver(root, tiny_model)

    monkeypatch.chdir(tmp_path)  # a relative root means this folder, also for a worker that runs in another
    storage, model, before = Storage("study"), ModelConfig(str(tiny_model)), signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, args=(root,), daemon=True).start()
    with pytest.raises(
        KeyboardInterrupt
    ):  # not an exit code of Ray's choice, before it could be said that the same command continues
        adapt(storage, model, CORPUS, KILLABLE, GangConfig())
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(root.glob("adapters/*/manifest.json"))

    (ref,) = adapt(storage, model, CORPUS, KILLABLE, GangConfig())
    assert signal.getsignal(signal.SIGINT) is before
    assert ref.facts["steps"] > 30
    assert files(storage, ref) == undisturbed

    written = (root / ref.key / "manifest.json").stat().st_mtime_ns
    refs = adapt(storage, model, CORPUS, replace(KILLABLE, ranks=(4, 2)), GangConfig())
    assert [(r.name, r.rank, r.alpha, r.seed) for r in refs] == [
        ("r4", 4, 8.0, 0),
        ("r2", 2, 4.0, 0),
    ] and refs[0] == ref
    assert (root / ref.key / "manifest.json").stat().st_mtime_ns == written
    for each in refs:
        folder = root / each.key
        assert each.digest == content_digest(folder)
        assert check_adapter(folder, empty_model(tiny_model))[0]["base_model_name_or_path"] == tiny_model.name
        assert {
            "steps",
            "tokens",
            "gain",
            "gain_se",
            "demonstrated",
            "curve",
            "planted",
            "seconds",
        } <= each.facts.keys()
    assert not list((root / "adapters/.train").iterdir()), "checkpoints of finished adapters are thrown away"


def interrupt(root: Path) -> None:
    """Ctrl-C for this process, once a training that goes on has kept another checkpoint."""

    def kept() -> set[str]:
        return {p.name for p in root.glob("adapters/.train/*/checkpoint_*") if p.is_dir()}

    there = kept()
    while kept() <= there:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_list_of_checkpoints_that_a_kill_cut_off_is_dropped_and_a_whole_one_is_kept(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for run, text in (("cut", b""), ("half", b'{"checkpoints": ['), ("whole", b"{}")):
        storage.write_bytes(f"adapters/.train/{run}/checkpoint_manager_snapshot.json", text)
        drop_half_written(storage, run)
    drop_half_written(storage, "never-begun")
    assert [p.parent.name for p in tmp_path.rglob("checkpoint_manager_snapshot.json")] == ["whole"]
