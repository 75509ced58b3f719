"""The same shards behind Arrow's own S3 client, speaking HTTP to a local S3 server."""

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
from tests.object_store import s3_root, s3_server
from tests.shards.made import HOOKS, KEY, SOURCES, begin, make_harvest, make_unit, make_vectors, stored, write_unit

pytestmark = pytest.mark.slow
DIGESTS = [source.digest for source in SOURCES]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture
def storage(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Storage:
    return Storage(s3_root(endpoint, f"b-{digest(request.node.name)}", monkeypatch))


def test_a_harvest_on_s3_is_byte_for_byte_the_local_one(storage: Storage, tmp_path: Path) -> None:
    local = Storage(str(tmp_path))
    units = sorted(make_harvest(storage, 4), key=lambda u: u.name)
    make_harvest(local, 4)
    assert Manifest.compact(storage, KEY) == Manifest.compact(local, KEY)
    assert storage.list("") == local.list("")
    assert all(storage.read_bytes(key) == local.read_bytes(key) for key in local.list(""))
    for shards in (open_shards(storage.root), open_shards(_harvest_uri(storage)), pickle.loads(pickle.dumps(open_shards(storage.root)))):
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


def test_resume_on_s3_finds_what_is_missing_and_repair_what_is_damaged(storage: Storage) -> None:
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


def test_a_shard_and_its_record_are_one_put_each(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    unit = make_unit(0)
    with caplog.at_level("INFO", "werkzeug"):
        write_unit(storage, unit, {"base": HOOKS})
    requests = [line.split('"')[1].split()[0] for line in caplog.messages]
    assert requests == ["PUT", "PUT"]


def test_a_bucket_that_is_not_there_is_told(storage: Storage) -> None:
    nowhere = Storage(storage.root.replace("s3://b-", "s3://not-b-"))
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
