"""A corpus of several files, read by Ray tasks: the same as one that this process reads, and errors keep
their type."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from deltasae_ray.corpus import tasks
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import Corpus, build_corpus
from deltasae_ray.corpus.files import HubAccess, TextFile, files_of
from deltasae_ray.corpus.shortlist import Ids, Merged
from deltasae_ray.errors import CorpusError
from tests.corpus.test_contexts import Words
from tests.object_store import s3_root, s3_server

CFG = CorpusConfig(unrelated=(), context_len=16, fit_tokens=900, eval_tokens=600, marker_share=0.2)


def rows(start: int, stop: int, *, named: bool) -> list[dict]:
    return [
        {"text": f"text {i} " + "w " * (8 + 7 * i % 40)} | ({"id": f"d{i}"} if named else {})
        for i in range(start, stop)
    ]


def write(path: Path, found: Sequence[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(found)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with and without ids, of which 40 stand in two files, a file without text, and more text than the
    budgets need."""
    folder = tmp_path_factory.mktemp("texts") / "train"
    write(folder / "a.jsonl", rows(0, 150, named=True))
    write(folder / "b.parquet", rows(1000, 1150, named=False))
    write(folder / "c.jsonl", [])
    write(folder / "d.jsonl", rows(1110, 1250, named=False))
    write(folder / "e.parquet", rows(150, 300, named=True))
    return folder


@pytest.fixture
def joined(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text of several files is worth tasks; grows by a word each time that Ray is joined."""
    monkeypatch.setattr(tasks, "WORTH_TASKS", 0)
    return []


def by_tasks(cfg: CorpusConfig, joined: list[str]) -> Corpus:
    return build_corpus(cfg, Words(), join=lambda: bool(joined.append("joined") or True))


def assert_same(one: Corpus, other: Corpus) -> None:
    assert one.key == other.key and len(one.units) > 10 and len(one.adapt) > 10
    assert one.adapt == other.adapt and one.overlap == other.overlap
    for mine, yours in zip(one.units, other.units, strict=True):
        assert (
            mine.name == yours.name
            and mine.doc_ids == yours.doc_ids
            and np.array_equal(mine.input_ids, yours.input_ids)
        )


def test_a_folder_gives_the_same_corpus_whichever_way_it_is_read(
    folder: Path, joined: list[str], tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    write(trained / "a.jsonl", [r | {"text": r["text"].upper()} for r in rows(0, 40, named=True)])
    write(trained / "b.jsonl", rows(1000, 1040, named=False))
    cfg = replace(CFG, path=(str(folder), "builtin:shakespeare"), trained_on=(str(trained),))
    here = build_corpus(cfg, Words())
    assert_same(here, by_tasks(cfg, joined))
    assert joined == ["joined", "joined"] and here.overlap
    (tmp_path / "one.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (*rows(0, 300, named=True), *rows(1000, 1250, named=False)))
    )
    assert_same(
        build_corpus(replace(CFG, path=(str(folder),)), Words()),
        build_corpus(replace(CFG, path=(str(tmp_path / "one.jsonl"),)), Words()),
    )


def test_an_error_of_a_task_is_the_one_that_is_told_without_tasks(joined: list[str], tmp_path: Path) -> None:
    broken, twice, blank = (tmp_path / name for name in ("broken", "twice", "blank"))
    write(broken / "a.jsonl", rows(0, 20, named=True))
    (broken / "b.jsonl").write_text(json.dumps({"text": "x"}) + "\n{")
    (broken / "c.jsonl").write_text("{")
    write(twice / "a.jsonl", rows(0, 300, named=True))
    write(twice / "b.jsonl", [])
    write(twice / "c.parquet", rows(299, 310, named=True))
    write(blank / "a.jsonl", [])
    write(blank / "b.jsonl", [{"text": " "}])
    expected = (
        (broken, f"{broken}/b.jsonl, line 2, is not JSON"),
        (twice, f"{twice}: document id 'd299' stands twice"),
        (blank, "holds no text"),
    )
    for path, message in expected:
        for way in (lambda cfg: build_corpus(cfg, Words()), lambda cfg: by_tasks(cfg, joined)):
            with pytest.raises(CorpusError, match=message) as told:
                way(replace(CFG, path=(str(path),)))
            assert type(told.value) is CorpusError
    assert len(joined) == 3


def test_tasks_read_a_folder_of_an_object_store(
    folder: Path, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        s3_root(server, "texts", monkeypatch)
        client = pafs.S3FileSystem(endpoint_override=server, scheme="http")
        for file in folder.iterdir():
            with client.open_output_stream(f"texts/train/{file.name}") as out:
                out.write(file.read_bytes())
        path = f"s3://key:secret@texts/train?endpoint_override={server}&scheme=http"
        assert not any(file.local for file in files_of(path))
        assert_same(
            build_corpus(replace(CFG, path=(str(folder),)), Words()),
            by_tasks(replace(CFG, path=(path,)), joined),
        )
    assert joined == ["joined"]


def test_ray_is_joined_only_for_several_files_that_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> bool:
        raise AssertionError("joined")

    one = TextFile("s3://b/t", "s3://b/t", "b/t/a.jsonl", "b/t/a.jsonl", size=tasks.WORTH_TASKS)
    small = replace(one, size=1000)
    assert (
        tasks.reader_of([one], never)
        is tasks.reader_of([small, small], never)
        is tasks.reader_of([one, one], None)
        is tasks.in_process
    )
    assert (
        tasks.reader_of([one, one], lambda: False)
        is tasks.reader_of([one, replace(one, root="")], lambda: True)
        is tasks.by_tasks
    )
    assert tasks.reader_of([one, replace(one, root="")], lambda: False) is tasks.in_process, (
        "no other node has this machine's files"
    )


@pytest.mark.parametrize("files", [1, 2, 3, 4, 5, 8, 100])
def test_every_file_is_in_one_wave_and_no_wave_is_longer_than_all_before(files: int) -> None:
    found = list(tasks.waves(files_of("builtin:kjv") * files, 2))
    assert sum(map(len, found)) == files
    assert all(len(wave) <= max(2, sum(map(len, found[:i]))) for i, wave in enumerate(found))


def test_what_is_asked_of_a_file_grows_less_with_the_files_before(folder: Path) -> None:
    merged, before = Merged("domain", Words(), CFG, {"fit": 900, "eval": 600, "adapt": 700}), []
    for file in files_of(str(folder)):
        merged.add(file, merged.reading()(file))
        before.append(merged.reading().wanted["fit"][1])
    assert before == sorted(before, reverse=True) and before[-1] < before[0] < 1


def test_an_id_is_found_in_whichever_file_it_stood_before() -> None:
    rng = np.random.default_rng(0)
    files = np.array_split(np.unique(rng.integers(0, 2**63, 1000).astype(np.uint64)), 40)
    for index, known in enumerate(files):
        ids = Ids()
        assert [ids.add(np.sort(file)) for file in files] == [None] * 40
        assert ids.add(np.sort(np.append(known[-1:], np.uint64(2**64 - 1 - index)))) == int(known[-1])


def test_the_token_of_the_hub_is_not_shown() -> None:
    assert "secret" not in repr(
        TextFile("hf://datasets/a/b", "hf://datasets/a/b@c", "", "", hub=HubAccess("https://hub", "secret"))
    )
