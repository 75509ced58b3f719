"""Dictionaries that go from window to window of a stream, without Ray: which rows they see, and that kills
leave no trace."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.stream import Stream, in_windows
from deltasae_ray.errors import DictionaryError
from deltasae_ray.fit import checkpoint, stacks, windows, worker
from deltasae_ray.fit.fitting import FitJob, steps_behind
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import failure, fitted_points, keys_of, raise_failures
from deltasae_ray.fit.windows import Window, schedule
from deltasae_ray.fit.worker import _all_ready, fit_share
from deltasae_ray.sae.peers import Peers
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.manifest import commit_unit
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.shards.spool import Board, spool_key, window_key, write_board
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage
from tests.fit.made import CFG, D_MODEL, HOOKS, KEY, SOURCES, make_harvest, make_unit, vectors

SPOOL = spool_key(KEY)
UNITS = tuple(make_unit(index) for index in range(60))
STREAM: Stream = in_windows(Corpus(UNITS, ()), 400, seed=0)
POINTS = tuple(
    FitPoint(a, layer, 32, 4, "topk", seed) for a in ("base", "r4") for layer in (1, 3) for seed in (0, 1)
)
HALVES = tuple(FitPoint("base", 1, 32, 4, "topk", 0, half) for half in ("A", "B"))
PLAN = schedule(KEY, SPOOL, STREAM.tokens, CFG.steps)


def write_window(storage: Storage, index: int, sources: tuple[Source, ...] = SOURCES) -> None:
    """What the harvest of one window leaves, and the board that says so."""
    key, units = window_key(SPOOL, index), STREAM.windows[index].units
    write_harvest(storage, key, {"d_model": D_MODEL})
    write_units(storage, key, map(Unit.of, units))
    for source in sources:
        write_source(storage, key, source)
    for unit in units:
        commit_unit(
            storage,
            key,
            [
                write_shard(storage, key, s.digest, unit, {h: vectors(unit, s, h) for h in HOOKS})
                for s in sources
            ],
        )
    write_board(storage, SPOOL, Board(ready=index))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A root with what stays of the stream."""
    made = Storage(str(tmp_path / "root"))
    make_harvest(made, made=list(STREAM.resident.units))
    write_board(made, SPOOL, Board())
    return made


def run(
    storage: Storage,
    *taken: Window,
    points: tuple[FitPoint, ...] = POINTS,
    rank: int = 0,
    world: int = 1,
    memory: int | None = None,
) -> None:
    fit_share(FitJob(storage, KEY, points, CFG, taken, SPOOL, len(PLAN)), rank, world, "cpu", memory=memory)


def stream_all(storage: Storage, points: tuple[FitPoint, ...] = POINTS) -> None:
    """Window by window, each deleted when it is behind every dictionary."""
    for window in PLAN:
        if window.index:
            write_window(storage, window.index)
        run(storage, window, points=points)
        assert all(
            steps_behind(storage, key, CFG.steps) >= window.ends
            for key in keys_of(storage, KEY, points, CFG).values()
        )
        if window.index:
            storage.delete_folder(window.key)


def manifests(storage: Storage, points: tuple[FitPoint, ...] = POINTS) -> list[dict]:
    return [storage.read_json(f"{key}/manifest.json") for key in keys_of(storage, KEY, points, CFG).values()]


def test_steps_are_dealt_to_windows_by_their_tokens() -> None:
    plan = schedule("kept", "spool/x", (300, 100, 200), 60)
    assert [(w.begins, w.ends) for w in plan] == [(0, 30), (30, 40), (40, 60)]
    assert [w.key for w in plan] == ["kept", "spool/x/000001", "spool/x/000002"]
    assert [(w.begins, w.ends) for w in schedule("kept", "spool/x", (500,), 7)] == [(0, 7)]


def test_every_row_of_a_window_is_seen_before_the_next_window_begins() -> None:
    rows = [torch.randn(128, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    trainer = Trainer(rows[0], Recipe(16, 2, batch_tokens=64, steps=12), seed=0)
    seen: Counter[tuple[int, float]] = Counter()
    draw = trainer.next_batch
    scaling = trainer.scaling

    def noted() -> torch.Tensor:
        y = draw()
        raw = y / scaling.scale + scaling.mean
        for row in raw:
            seen[
                min(
                    ((window, float((x - row).abs().sum(1).min())) for window, x in enumerate(rows)),
                    key=lambda f: f[1],
                )[0],
                0.0,
            ] += 1
        return y

    trainer.next_batch = noted  # type: ignore[method-assign]
    for window, x in enumerate(rows):
        if window:
            trainer.take_window(x, trainer.steps_done, 128 * window)
        for _ in range(4):
            trainer.step()
        assert seen == {(w, 0.0): 2 * 128 for w in range(window + 1)}
    assert trainer.finish().meta["rows"] == 3 * 128


def test_one_window_is_an_ordinary_fit() -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    plain, windowed = (Trainer(x, Recipe(16, 2, batch_tokens=64, steps=6), seed=0) for _ in range(2))
    windowed.take_window(x, 0, 0)
    for trainer in (plain, windowed):
        while not trainer.done:
            trainer.step()
    assert torch.equal(plain.finish().W_dec, windowed.finish().W_dec)


def test_a_stream_gives_the_bytes_of_stored_shards_read_in_the_same_windows(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_all(storage, POINTS + HALVES)
    assert not [k for k in storage.list(SPOOL) if k.endswith(".parquet")]

    stored = Storage(str(tmp_path / "stored"))
    make_harvest(stored, made=list(UNITS))
    whole = open_harvest(stored, KEY)
    members = {window_key(SPOOL, i): {u.name for u in w.units} for i, w in enumerate(STREAM.windows) if i}
    members[KEY] = {u.name for u in STREAM.resident.units}

    def opened(_: Storage, key: str) -> ShardSet:
        return replace(whole, all_units=tuple(u for u in whole.all_units if u.name in members[key]))

    for module in (windows, worker):
        monkeypatch.setattr(module, "open_harvest", opened)
    write_board(stored, SPOOL, Board(ready=len(PLAN) - 1))
    run(stored, *PLAN, points=POINTS + HALVES)
    assert manifests(stored, POINTS + HALVES) == manifests(storage, POINTS + HALVES)
    assert len(weights(storage)) == len(POINTS + HALVES) and weights(storage) == weights(stored)


def test_every_dictionary_counts_the_rows_of_all_windows_and_halves_share_them(storage: Storage) -> None:
    stream_all(storage, (POINTS[0], *HALVES))
    rows = [m["rows"] for m in manifests(storage, (POINTS[0], *HALVES))]
    assert rows[0] == 40 * 4 * 8 == rows[1] + rows[2] and min(rows) > 0
    (found,) = fitted_points(storage, KEY, POINTS[:1], CFG).values()
    assert found.metrics["fvu"] < 0.5


@pytest.fixture
def calm(tmp_path: Path) -> Storage:
    """Another root with what stays of the stream."""
    made = Storage(str(tmp_path / "calm"))
    make_harvest(made, made=list(STREAM.resident.units))
    write_board(made, SPOOL, Board())
    return made


def weights(storage: Storage) -> list[bytes]:
    return [storage.read_bytes(k) for k in storage.list("dictionaries") if k.endswith("weights.safetensors")]


def test_dictionaries_of_one_shape_go_over_the_windows_stacked_and_end_with_the_bytes_of_each_alone(
    storage: Storage, calm: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, sizes = (*POINTS, *HALVES, FitPoint("base", 1, 48, 4, "topk", 0)), Counter[int]()
    together = stacks.train_together
    with monkeypatch.context() as patch:
        patch.setattr(
            stacks,
            "train_together",
            lambda members, *rest: sizes.update([len(members)]) or together(members, *rest),
        )
        stream_all(storage, points)
        assert set(sizes) == {9, 10}, (
            "all of one recipe, whatever their rows, but for a half without a whole batch in some window"
        )
        patch.setattr(stacks, "at_once", lambda *_: 1)
        before = sizes.total()
        stream_all(calm, points)
        assert sizes.total() == before
    assert manifests(storage, points) == manifests(calm, points)
    assert weights(storage) == weights(calm) and len(weights(calm)) == len(points)


PAIR = POINTS[:2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """PAIR after a calm stream."""
    made = Storage(str(tmp_path_factory.mktemp("undisturbed")))
    make_harvest(made, made=list(STREAM.resident.units))
    write_board(made, SPOOL, Board())
    stream_all(made, PAIR)
    return made


def killed_and_resumed(storage: Storage) -> int:
    """Steps that the one of PAIR farthest behind had kept when the kill came; the stream then goes on to its
    end."""
    with pytest.raises(KeyboardInterrupt):
        stream_all(storage, PAIR)
    behind = min(steps_behind(storage, key, CFG.steps) for key in keys_of(storage, KEY, PAIR, CFG).values())
    for window in PLAN:
        if window.ends <= behind:
            continue
        if window.index:
            write_window(storage, window.index)
        run(storage, window, points=PAIR)
    return behind


@pytest.mark.parametrize("stop", [7, 15, 22, 59])
def test_a_kill_inside_or_between_windows_leaves_no_trace(
    storage: Storage, undisturbed: Storage, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    steps, draw = Counter[int](), Trainer.next_batch

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.seed == 1 and self.steps_done == stop and not steps[-1]:
            steps[-1] += 1
            raise KeyboardInterrupt
        steps[self.seed] += 1
        return draw(self)

    monkeypatch.setattr(Trainer, "next_batch", interrupted)
    assert killed_and_resumed(storage) <= stop
    assert manifests(storage, PAIR) == manifests(undisturbed, PAIR)
    assert all(CFG.steps <= steps[seed] <= CFG.steps + CFG.checkpoint_every for seed in (0, 1))


@pytest.mark.parametrize("stop", [1, 3])
def test_a_kill_between_the_checkpoints_of_a_stack_leaves_members_behind_that_catch_up(
    storage: Storage, undisturbed: Storage, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Inside the first window, and at its end, where one member is through with it."""
    written, write = Counter[str](), checkpoint.write

    def interrupted(storage: Storage, key: str, state: dict) -> None:
        written[key] += 1
        if written.total() == stop + 1:
            raise KeyboardInterrupt
        write(storage, key, state)

    monkeypatch.setattr(checkpoint, "write", interrupted)
    assert killed_and_resumed(storage) == {1: 0, 3: CFG.checkpoint_every}[stop]
    assert manifests(storage, PAIR) == manifests(undisturbed, PAIR) and weights(storage) == weights(
        undisturbed
    )


def test_a_dictionary_added_later_goes_over_all_windows_and_the_others_are_left_alone(
    storage: Storage,
) -> None:
    stream_all(storage, POINTS[:1])
    before = manifests(storage, POINTS[:1])
    added = FitPoint("base", 1, 48, 4, "topk", 0)
    assert steps_behind(storage, keys_of(storage, KEY, [added], CFG)[added], CFG.steps) == 0
    stream_all(storage, (POINTS[0], added))
    assert (
        manifests(storage, POINTS[:1]) == before
        and manifests(storage, (added,))[0]["rows"] == before[0]["rows"]
    )


def test_what_cannot_be_fitted_fails_on_the_first_window_and_holds_nobody_up(storage: Storage) -> None:
    silent = FitPoint("late", 1, 32, 4, "topk", 0)
    stream_all(storage, (silent, POINTS[0]))
    keys = keys_of(storage, KEY, [silent, POINTS[0]], CFG)
    assert set(fitted_points(storage, KEY, [silent, POINTS[0]], CFG)) == {POINTS[0]}
    assert failure(storage, keys[POINTS[0]]) is None
    with pytest.raises(DictionaryError, match="late layer 1.*rows are equal"):
        raise_failures(storage, {silent: keys[silent]})


def test_a_size_that_the_whole_stream_fills_may_exceed_the_first_window(storage: Storage) -> None:
    first = STREAM.windows[0].num_tokens()
    large, too_large = (FitPoint("base", 1, d_sae, 4, "topk", 0) for d_sae in (first + 100, 5000))
    run(storage, PLAN[0], points=(large, too_large))
    keys = keys_of(storage, KEY, [large, too_large], CFG)
    assert checkpoint.steps_done(storage, keys[large]) == PLAN[0].ends
    assert "training rows for 5000 latents" in str(failure(storage, keys[too_large]))


def test_a_stopped_stream_ends_its_workers(storage: Storage) -> None:
    write_board(storage, SPOOL, Board(stopped=True))
    run(storage, *PLAN, points=POINTS[:1])
    assert checkpoint.steps_done(storage, keys_of(storage, KEY, POINTS[:1], CFG)[POINTS[0]]) == PLAN[0].ends


def test_a_peer_goes_on_only_where_all_saw_the_window() -> None:
    class Two(Peers):
        world = 2

        def __init__(self, other_is_ready: bool) -> None:
            self.other = float(other_is_ready)

        def sum(self, tensor: torch.Tensor) -> None:
            tensor += self.other

    assert _all_ready(True, "cpu", None) and _all_ready(True, "cpu", Two(True))
    assert not _all_ready(True, "cpu", Two(False)), "it would wait for the other in its first step"
    assert not _all_ready(False, "cpu", Two(True)) and not _all_ready(False, "cpu", None)


@pytest.mark.parametrize(
    ("memory", "fit", "evaluation"), [(None, 1, 1), (1, len(PLAN), 2)], ids=["held", "not held"]
)
def test_what_stays_is_read_once_where_a_worker_holds_it_and_else_per_window_with_evaluation_rows_first_and_last(
    memory: int | None, fit: int, evaluation: int, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = Counter(), ShardSet.read

    def counted(
        self: ShardSet, hookpoint: int, adapter: str = "base", split: str | None = None
    ) -> np.ndarray:
        reads[self.key == KEY, split] += 1
        return read(self, hookpoint, adapter, split)

    monkeypatch.setattr(ShardSet, "read", counted)
    for window in PLAN[1:]:
        write_window(storage, window.index)
    write_board(storage, SPOOL, Board(ready=len(PLAN) - 1))
    points = FitPoint("base", 1, 32, 4, "topk", 0), FitPoint("base", 3, 32, 4, "topk", 0)  # two shares
    run(storage, *PLAN, points=points, memory=memory)
    assert len(PLAN) >= 4
    assert reads == {
        (True, "fit"): 2 * fit,
        (True, "eval"): 2 * evaluation,
        (False, "fit"): 2 * (len(PLAN) - 1),
    }


def test_two_workers_share_a_window(storage: Storage, tmp_path: Path) -> None:
    other = Storage(str(tmp_path / "other"))
    make_harvest(other, made=list(STREAM.resident.units))
    write_board(other, SPOOL, Board())
    run(other, PLAN[0])
    for rank in (0, 1):
        run(storage, PLAN[0], rank=rank, world=2)
    for a, b in zip(states(storage), states(other), strict=True):
        assert all(torch.equal(a["tensors"][name], b["tensors"][name]) for name in a["tensors"])


def states(storage: Storage) -> Iterator[dict]:
    for key in keys_of(storage, KEY, POINTS, CFG).values():
        state = checkpoint.read(storage, key)
        assert state is not None and state["note"]["rows"] > 0
        yield state


def test_rows_that_are_not_finite_are_dropped_and_counted_in_whichever_window_they_are(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltasae_ray.sae.recipe.MAX_NOT_FINITE", 0.01)
    read = ShardSet.read

    def with_nan(
        self: ShardSet, hookpoint: int, adapter: str = "base", split: str | None = None
    ) -> np.ndarray:
        x = read(self, hookpoint, adapter, split).copy()
        if split == "fit" and self.key == PLAN[1].key:
            x[(self.tokens("fit").position > 0).nonzero()[0][:2], 3] = float("nan")
        return x

    monkeypatch.setattr(ShardSet, "read", with_nan)
    stream_all(storage, POINTS[:1])
    (manifest,) = manifests(storage, POINTS[:1])
    assert manifest["dropped_rows"] == {"fit": 2, "eval": 0} and manifest["rows"] == 40 * 4 * 8 - 2
