"""The same shards behind Arrow's own clients of S3 and Google Cloud Storage, speaking HTTP to local
servers."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deltasae_ray.errors import ShardError, StorageError
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage, digest
from tests.object_store import gs_root, gs_server, s3_root, s3_server
from tests.shards.made import (
    HOOKS,
    KEY,
    SOURCES,
    begin,
    make_harvest,
    make_unit,
    make_vectors,
    stored,
    write_unit,
)

pytestmark = pytest.mark.slow
DIGESTS = [source.digest for source in SOURCES]


@pytest.fixture(scope="module")
def endpoints() -> Iterator[dict[str, str]]:
    with s3_server() as s3, gs_server() as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture(params=["s3", "gs"])
def storage(
    endpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Storage:
    bucket = f"b-{digest(request.node.name)}"
    return Storage(
        gs_root(endpoints["gs"], bucket)
        if request.param == "gs"
        else s3_root(endpoints["s3"], bucket, monkeypatch)
    )


only_s3 = pytest.mark.parametrize("storage", ["s3"], indirect=True)


def test_a_harvest_on_an_object_store_is_byte_for_byte_the_local_one(
    storage: Storage, tmp_path: Path
) -> None:
    local = Storage(str(tmp_path))
    units = sorted(make_harvest(storage, 4), key=lambda u: u.name)
    make_harvest(local, 4)
    assert Manifest.compact(storage, KEY) == Manifest.compact(local, KEY)
    assert storage.list("") == local.list("")
    assert all(storage.read_bytes(key) == local.read_bytes(key) for key in local.list(""))
    for shards in (
        open_shards(storage.root),
        open_shards(_harvest_uri(storage)),
        pickle.loads(pickle.dumps(open_shards(storage.root))),
    ):
        assert shards.key == KEY
        for source in SOURCES:
            expected = stored(np.concatenate([make_vectors(u, source.digest, HOOKS[1]) for u in units]))
            assert np.array_equal(shards.read(10, source.name, verify=True), expected)
            assert np.array_equal(shards.read(10, source.name), expected)
        assert shards.tokens().doc_id.tolist() == [d for u in units for d in u.row_doc_ids()]
    open_shards(storage.root).verify()


def _harvest_uri(storage: Storage) -> str:
    location, _, query = storage.root.partition("?")
    return f"{location}/{KEY}?{query}"


def test_resume_on_an_object_store_finds_what_is_missing_and_repair_what_is_damaged(storage: Storage) -> None:
    units = [make_unit(index) for index in range(3)]
    begin(storage, units)
    for unit in units[:2]:
        write_unit(storage, unit)
    names = [u.name for u in units]
    work = Manifest.load(storage, KEY).missing(names, dict.fromkeys(DIGESTS, HOOKS))
    assert work == {names[2]: dict.fromkeys(DIGESTS, HOOKS)}
    write_unit(storage, units[2], work[names[2]])
    before = Manifest.compact(storage, KEY)
    truncated, gone = before.rows[0], before.rows[-1]
    storage.write_bytes(f"{KEY}/{truncated.file}", storage.read_bytes(f"{KEY}/{truncated.file}")[:-1])
    storage.fs.delete_file(storage.path(f"{KEY}/{gone.file}"))
    with pytest.raises(ShardError, match=f"{truncated.file} has .* bytes and not"):
        open_shards(storage.root).verify()
    assert list(repair(storage, KEY)) == [truncated, gone]
    for name, todo in Manifest.load(storage, KEY).missing(names, dict.fromkeys(DIGESTS, HOOKS)).items():
        write_unit(storage, units[names.index(name)], todo)
    assert Manifest.compact(storage, KEY) == before
    open_shards(storage.root).verify()


@only_s3
def test_a_shard_and_its_record_are_one_put_each(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    unit = make_unit(0)
    with caplog.at_level("INFO", "werkzeug"):
        write_unit(storage, unit, {"base": HOOKS})
    requests = [line.split('"')[1].split()[0] for line in caplog.messages]
    assert requests == ["PUT", "PUT"]


def test_a_bucket_that_is_not_there_is_told(storage: Storage) -> None:
    nowhere = Storage(storage.root.replace("b-", "not-b-", 1))
    with pytest.raises(StorageError, match="not-b.* cannot be written"):
        write_unit(nowhere, make_unit(0))
    with pytest.raises(ShardError, match="there is no harvest below not-b"):
        open_shards(nowhere.root)


def test_a_folder_is_deleted_with_all_that_is_in_it_and_nothing_beside_it(storage: Storage) -> None:
    for name in ("a/b/c", "a/d", "ab/e"):
        storage.write_bytes(name, b"x")
    storage.delete_folder("a")
    storage.delete_folder("a")
    assert storage.list("") == ["ab/e"]


def test_folders_sizes_and_files_of_the_root_are_found_by_the_names_of_objects(storage: Storage) -> None:
    for name in ("harvest/a/harvest.json", "harvest/b/sources/x", "lease-1.json", "study.json"):
        storage.write_bytes(name, b"xyz")
    assert (
        storage.folders("") == ("harvest",)
        and storage.folders("harvest") == ("a", "b")
        and storage.folders("harvest/a") == ()
    )
    assert storage.folders("nowhere") == () and storage.list("nowhere") == []
    assert (
        set(storage.written("lease-")) == {"lease-1.json"} and storage.written("lease-")["lease-1.json"] > 1e9
    )
    assert storage.exists("study.json") and not storage.exists("harvest") and not storage.exists("study.jso")
    assert storage.size("study.json") == 3 and storage.size("harvest/a") is None
    with pytest.raises(StorageError, match="gone.json"):
        storage.read_json("gone.json")


def test_what_is_not_there_is_deleted_without_an_error_also_where_a_folder_was_made(storage: Storage) -> None:
    storage.fs.create_dir(storage.path("made/inner"))
    for folder in ("made", "made", "never", "never/inner"):
        storage.delete_folder(folder)
    storage.delete_file("never/file")
    storage.write_bytes("big", b"x" * 5_000_000)
    assert storage.sizes("") == {"big": 5_000_000} and storage.read_bytes("big") == b"x" * 5_000_000
    storage.delete_file("big")
    assert storage.list("") == [] and storage.folders("made") == ()
