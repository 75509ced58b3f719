"""Records that name files elsewhere: nothing outside the harvest is read or deleted, and nothing in it that
is another's."""

import json
from pathlib import Path

import pytest

from deltasae_ray.errors import DeltaSaeError, ShardError, StorageError
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage
from tests.shards.made import KEY, make_harvest

DEEP = "../../../victim"
ELSEWHERE = [
    DEEP,
    "/etc/hostname",
    "sources/../../../../victim",
    "harvest.json",
    "units.json",
    "rows",
    "",
    "\0",
    "sources/base/source.json",
]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "root"))
    make_harvest(made, 3)
    (tmp_path / "victim").write_text("mine")
    return made


def victim(storage: Storage) -> Path:
    return Path(storage.root).parent / "victim"


@pytest.mark.parametrize("file", ELSEWHERE)
def test_a_row_that_names_a_file_elsewhere_makes_nobody_delete_or_read_it(
    storage: Storage, file: str
) -> None:
    name = storage.list(f"{KEY}/rows")[0]
    first, *others = json.loads(storage.read_bytes(name))
    storage.write_json(name, [{**first, "file": file}, *others])
    before = {k: storage.read_bytes(k) for k in storage.list("")}
    for hashes in (False, True):
        assert repair(storage, KEY, hashes=hashes) == {}, (
            "the row is none: its unit is missing, and nothing is dropped"
        )
    assert "is not the file of this unit" in "".join(Manifest.load(storage, KEY).damaged)
    assert victim(storage).read_text() == "mine"
    assert {k for k in before if "/rows/" not in k and "manifest" not in k} - set(storage.list("")) <= {
        k for k in before if k.endswith(".parquet")
    }
    with pytest.raises(ShardError, match="lacks 2 of|incomplete"):
        open_shards(storage.root).read(2, "base")


@pytest.mark.parametrize("what", ["shard", "source", "sources", "rows", "harvest"])
def test_symlinks_in_a_harvest_that_lead_out_are_refused_and_what_they_point_to_stays(
    storage: Storage, what: str, tmp_path: Path
) -> None:
    row = next(r for r in Manifest.load(storage, KEY).rows if r.source == "base")
    place = storage.local(KEY) / {"shard": row.file, "source": "sources/base", "harvest": "."}.get(what, what)
    outside = tmp_path / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    content = {p: p.read_bytes() for p in [outside, *outside.rglob("*")] if p.is_file()}
    for access in (
        lambda: repair(storage, KEY, hashes=True),
        lambda: open_shards(storage.root).read(2, "base"),
    ):
        with pytest.raises(
            StorageError if what != "shard" else DeltaSaeError, match="leads out of .* by a symlink"
        ):
            access()
    assert {p: p.read_bytes() for p in content} == content


def test_a_study_that_names_a_harvest_elsewhere_is_refused(storage: Storage, tmp_path: Path) -> None:
    make_harvest(Storage(str(tmp_path / "other")), 1)
    for harvest in (f"../other/{KEY}", str(tmp_path / "other" / KEY), 5, None):
        storage.write_json("study.json", {"harvest": harvest, "sources": []})
        with pytest.raises(ShardError, match=r"study\.json"):
            open_shards(storage.root)
