"""Datasets on the hub, read by ranges over HTTP: how much of them travels, and what stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus.hub import SHA, serving
from tests.sweep.submitted import REPOSITORY

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


def read(paths: list[tuple[str, int | None]], home: Path, **environment: str) -> list:
    """First words of the first documents of each path, or the error; in a process of its own, since the client reads its endpoint once."""
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(paths)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"} | environment,
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
    pq.write_table(pa.Table.from_pylist(rows), columns / "train.parquet", row_group_size=1000, compression="none")
    (columns / "README.md").write_text("no text of the dataset")
    (lines / "train.jsonl").write_text("".join(json.dumps({"body": f"t{i} " + "w " * 5000}) + "\n" for i in range(2500)))
    return root


def test_only_the_columns_and_rows_that_are_asked_for_travel_and_no_copy_is_kept(datasets: Path, tmp_path: Path) -> None:
    with serving(datasets) as hub:
        paths = [("some/columns", None), ("some/lines", 1), ("some/columns@main/train.parquet", 1), ("some/absent", 1), ("some/columns@old", 1)]
        whole, first, one, absent, old = read([(f"hf://datasets/{p}", most) for p, most in paths], tmp_path, HF_ENDPOINT=hub.endpoint)
    assert whole == [f"t{i}" for i in range(3000)] and first == one == ["t0"]
    sizes = {name: (datasets / name).stat().st_size for name in hub.sent}
    assert min(sizes.values()) > 25e6 and sizes.keys() == {"some/columns/train.parquet", "some/lines/train.jsonl"}
    assert hub.sent["some/columns/train.parquet"] < 0.8 * sizes["some/columns/train.parquet"], "read twice, once of it whole"
    assert hub.sent["some/lines/train.jsonl"] < 0.3 * sizes["some/lines/train.jsonl"]
    assert "hf://datasets/some/absent cannot be read from the hub" in absent and "some/columns@old cannot be read" in old
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 1e5


def test_without_a_network_the_copy_in_the_cache_is_read(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "datasets--some--texts"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(SHA)
    snapshot = cached / "snapshots" / SHA / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "a.jsonl").write_text(json.dumps({"body": "t0 and more"}) + "\n")
    (snapshot / "README.md").write_text("no text of the dataset")
    paths = [("hf://datasets/some/texts", None), ("hf://datasets/some/texts/data", None), ("hf://datasets/some/absent", None)]
    *found, absent = read(paths, tmp_path, HF_HUB_OFFLINE="1")
    assert found == [["t0"], ["t0"]] and "some/absent cannot be read from the hub" in absent
