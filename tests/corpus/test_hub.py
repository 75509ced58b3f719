"""Datasets on the hub, read by ranges over HTTP: how much of them travels, and what stays."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus.hub import SHA, serving
from tests.study.submitted import REPOSITORY

READ = """
import json, sys
from itertools import islice
from tests.corpus.reading import read_documents
from deltasae_ray.errors import CorpusError
for path, most in json.loads(sys.argv[1]):
    try:
        print(json.dumps([d.text.split()[0] for d in islice(read_documents(path, "body"), most)]))
    except CorpusError as e:
        print(json.dumps(str(e)))
"""

BUILD = """
import json, os, sys, tempfile
import ray
from deltasae_ray.corpus import tasks
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from tests.corpus.test_contexts import Words

def join():  # nodes have neither the endpoint nor the token in their environment
    os.environ.pop("HF_ENDPOINT"), os.environ.pop("HF_TOKEN")
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, _temp_dir=sys.argv[2])
    return False

tasks.WORTH_TASKS = 0
cfg = CorpusConfig(path=(sys.argv[1],), unrelated=(), text_field="body", fit_tokens=30_000, context_len=16)
keys = [build_corpus(cfg, Words(), join=way).key for way in (None, join)]
print(json.dumps(keys))
"""


def read(paths: list[tuple[str, int | None]], home: Path, **environment: str) -> list:
    """First words of the first documents of each path, or the error."""
    return run(READ, json.dumps(paths), home=home, **environment)


def run(script: str, *words: str, home: Path, **environment: str) -> list:
    """What a script prints, in a process of its own, since the client reads its endpoint once."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet, most of which are bytes that nobody asks for; JSONL, of which one line is asked for."""
    root, noise = tmp_path_factory.mktemp("hub"), np.random.default_rng(0)
    columns, lines = root / "some" / "columns", root / "some" / "lines"
    columns.mkdir(parents=True)
    lines.mkdir()
    rows = [{"body": f"t{i} " + "w " * 300, "image": noise.bytes(12_000)} for i in range(3000)]
    pq.write_table(
        pa.Table.from_pylist(rows), columns / "train.parquet", row_group_size=1000, compression="none"
    )
    (columns / "README.md").write_text("no text of the dataset")
    (lines / "train.jsonl").write_text(
        "".join(json.dumps({"body": f"t{i} " + "w " * 5000}) + "\n" for i in range(2500))
    )
    return root


def test_only_the_columns_and_rows_that_are_asked_for_travel_and_no_copy_is_kept(
    datasets: Path, tmp_path: Path
) -> None:
    with serving(datasets) as hub:
        paths = [
            ("some/columns", None),
            ("some/lines", 1),
            ("some/columns@main/train.parquet", 1),
            ("some/absent", 1),
            ("some/columns@old", 1),
        ]
        whole, first, one, absent, old = read(
            [(f"hf://datasets/{p}", most) for p, most in paths], tmp_path, HF_ENDPOINT=hub.endpoint
        )
    assert whole == [f"t{i}" for i in range(3000)] and first == one == ["t0"]
    sizes = {name: (datasets / name).stat().st_size for name in hub.sent}
    assert min(sizes.values()) > 25e6 and sizes.keys() == {
        "some/columns/train.parquet",
        "some/lines/train.jsonl",
    }
    assert hub.sent["some/columns/train.parquet"] < 0.8 * sizes["some/columns/train.parquet"], (
        "read twice, once of it whole"
    )
    assert hub.sent["some/lines/train.jsonl"] < 0.3 * sizes["some/lines/train.jsonl"]
    assert (
        "hf://datasets/some/absent cannot be read from the hub" in absent
        and "some/columns@old cannot be read" in old
    )
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 1e5


def test_without_a_network_the_copy_in_the_cache_is_read(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "datasets--some--texts"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(SHA)
    snapshot = cached / "snapshots" / SHA / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "a.jsonl").write_text(json.dumps({"body": "t0 and more"}) + "\n")
    (snapshot / "README.md").write_text("no text of the dataset")
    paths = [
        ("hf://datasets/some/texts", None),
        ("hf://datasets/some/texts/data", None),
        ("hf://datasets/some/absent", None),
    ]
    *found, absent = read(paths, tmp_path, HF_HUB_OFFLINE="1")
    assert found == [["t0"], ["t0"]] and "some/absent cannot be read from the hub" in absent


@pytest.mark.slow
def test_tasks_read_the_same_commit_with_the_drivers_endpoint_and_token_which_no_log_holds(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "hub" / "some" / "secret"
    folder.mkdir(parents=True)
    for name in "abc":
        rows = [{"body": f"{name}{i} " + "w " * 30} for i in range(50)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    # Ray's folder has a short name: its sockets allow no long one.
    with (
        serving(folder.parents[1], token="hf_of_the_driver") as hub,
        tempfile.TemporaryDirectory(dir="/tmp") as ray,
    ):
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "RAY_ADDRESS": "local"}
        ((here, by_tasks),) = run(
            BUILD, "hf://datasets/some/secret", ray, home=tmp_path / "home", **environment
        )
        logs = [p for p in Path(ray).rglob("*") if p.is_file() and "logs" in p.parts]
        assert here == by_tasks and len(logs) > 5
        assert not [p.name for p in logs if hub.token.encode() in p.read_bytes()]
    assert hub.sent.keys() == {f"some/secret/{name}.parquet" for name in "abc"}
