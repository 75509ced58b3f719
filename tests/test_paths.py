"""Names from stored data stay in their folder, symlinks included."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.paths import expanded, inside, inside_local
from deltasae_ray.storage import Storage
from deltasae_ray.study.cluster_check import resolve_root
from tests.fuzz import LONG, SHORT

OUT = [
    "../victim",
    "../../victim",
    "a/../../victim",
    "/etc/passwd",
    "..",
    "",
    ".",
    "a\0b",
    "..\\victim",
    "\ud800",
]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file beside the root, which nothing may touch."""
    (tmp_path / "root").mkdir()
    (tmp_path / "victim").write_text("mine")
    return tmp_path / "victim"


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("root", ["", "s3"])
def test_a_key_that_leaves_the_root_is_refused_by_every_access(victim: Path, name: str, root: str) -> None:
    storage = Storage(str(victim.parent / "root"))
    if root:  # only the root's text tells an object store apart: no request is made
        storage.__dict__["_opened"], storage.__dict__["root"] = (
            (storage.fs, "bucket/root"),
            "s3://bucket/root",
        )
    accesses = [
        storage.read_bytes,
        storage.read_json,
        storage.exists,
        storage.size,
        storage.sizes,
        storage.folders,
        storage.list,
    ]
    for access in [
        *accesses,
        storage.delete_file,
        storage.delete_folder,
        lambda key: storage.write_bytes(key, b"x"),
    ]:
        if name or access in (storage.read_bytes, storage.delete_folder):  # the root itself can be listed
            with pytest.raises(StorageError):
                access(name)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_symlink_that_leads_out_is_refused_before_reading_writing_and_deleting(
    tmp_path: Path, what: str
) -> None:
    (tmp_path / "outside").mkdir()
    kept = tmp_path / "outside" / "victim"
    kept.write_text("mine")
    storage = Storage(str(tmp_path / "root"))
    storage.write_bytes("harvest/own", b"own")
    link = storage.local("") / "harvest" / "link"
    link.symlink_to(kept if what == "file" else kept.parent)
    key = "harvest/link" if what == "file" else "harvest/link/victim"
    for access in (
        storage.read_bytes,
        storage.exists,
        storage.delete_file,
        storage.delete_folder,
        lambda k: storage.write_bytes(k, b"x"),
    ):
        with pytest.raises(StorageError, match=f"{key}|leads out of .* by a symlink"):
            access(key)
    with pytest.raises(StorageError, match="leads out of .* by a symlink.*nothing was touched"):
        storage.get_folder("harvest", tmp_path / "scratch")
    storage.delete_folder("harvest")
    assert kept.read_text() == "mine" and not link.is_symlink(), (
        "the link goes with its folder, what it points to stays"
    )


def test_a_root_that_is_a_symlink_is_followed_and_symlinks_within_it_too(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    storage = Storage(str(tmp_path / "root"))
    storage.write_bytes("a/b", b"x")
    (tmp_path / "disk" / "c").symlink_to(tmp_path / "disk" / "a")
    assert storage.read_bytes("c/b") == b"x"


def test_the_root_itself_is_never_deleted(victim: Path) -> None:
    storage = Storage(str(victim.parent / "root"))
    storage.write_bytes("a", b"x")
    for key in ("", "/", ".", "./"):
        with pytest.raises(StorageError):
            storage.delete_folder(key)
    assert storage.read_bytes("a") == b"x"


def test_a_name_of_an_object_leads_nowhere_out_of_the_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage("s3://bucket/root")
    monkeypatch.setattr(Storage, "list", lambda *_: ["adapters/x/../../../victim"])
    with pytest.raises(StorageError, match="victim"):
        storage.get_folder("adapters/x", tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("victim"))


def test_a_damaged_json_file_is_told_with_its_name_and_what_it_lacks(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for data in (b"[1]", b'{"a":', b"\xff", b"[" * 100_000):
        storage.write_bytes("x.json", data)
        with pytest.raises(StorageError, match=r"x\.json .*delete it and run again"):
            storage.read_json("x.json")
    storage.write_json("x.json", {"a": {"b": 1}})
    for lookup in (lambda found: found["c"], lambda found: found["a"]["c"]):
        with pytest.raises(StorageError, match=r"x\.json has no field 'c'"):
            lookup(storage.read_json("x.json"))


_NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "link", "\0", "\\", "\ud800", "victim"]) | st.text(max_size=3),
    max_size=6,
).map("/".join)


def _stays(name: str, folder: Path) -> None:
    try:
        text, path = inside(str(folder), name), inside_local(folder, name)
    except StorageError:
        return
    assert os.path.normpath(text).startswith(f"{folder}/") or os.path.normpath(text) == str(folder)
    assert path.resolve().is_relative_to(folder.resolve())


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linked") / "root"
    (folder / "a").mkdir(parents=True)
    (folder / "link").symlink_to(folder.parent)
    (folder / "a" / "a").symlink_to(folder / "a" / "a")
    return folder


@SHORT
@given(_NAMES)
def test_no_name_leads_out_of_its_folder(linked: Path, name: str) -> None:
    _stays(name, linked)


@pytest.mark.prove
@LONG
@given(_NAMES)
def test_no_name_of_ten_thousand_leads_out_of_its_folder(linked: Path, name: str) -> None:
    _stays(name, linked)


@pytest.mark.parametrize(
    "path", ["s3:/bucket/x", "gs:x", "file:runs", "S3:/b", "https:/host/x", "hf:/datasets/a/b"]
)
def test_an_address_that_lost_a_slash_is_no_folder(path: str) -> None:
    with pytest.raises(
        ConfigError, match=f"begins like an address, but has no .*://.*{path[:2].lower()}.*or ./"
    ):
        expanded(path, "storage.root")


def test_a_root_that_cannot_be_a_folder_is_told_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "nowhere").symlink_to("gone")
    for root, told in (
        (file, "is a file"), (file / "x/y", f"since {file} is a file"),
        (tmp_path / "nowhere/x", "a symlink to nothing"),
        (tmp_path / ("a" * 300), "a name of 300 bytes.*take 255"), (tmp_path / ("b" * 256) / "x",
            "256 bytes"),
    ):  # fmt: skip
        for text in (str(root), f"file://{root}"):
            with pytest.raises(ConfigError, match=told):
                resolve_root(text)
    assert resolve_root(str(tmp_path / "a/b")).root == str(tmp_path / "a/b") and not (tmp_path / "a").exists()
