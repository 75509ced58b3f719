import pickle
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from deltasae_ray.errors import HookpointError, StorageError
from deltasae_ray.hookpoints import Hookpoint, at_sites, resolve
from deltasae_ray.paths import below
from deltasae_ray.storage import Storage, digest


def test_a_put_is_whole_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a/b.bin", b"one")
    storage.write_bytes("a/b.bin", b"two")
    assert storage.read_bytes("a/b.bin") == b"two"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.bin"]


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_json("a/b.json", {"x": 1})
    (tmp_path / "a" / ".tmp-1").write_bytes(b"half")
    assert storage.list("a") == ["a/b.json"]
    assert storage.list("nowhere") == []


def test_a_folder_is_deleted_with_all_that_is_in_it_and_nothing_beside_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("a/b/c", "a/d", "ab/e"):
        storage.write_bytes(name, b"x")
    storage.delete_folder("a")
    storage.delete_folder("a")
    assert storage.list("") == ["ab/e"] and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("root", "address"),
    [
        ("s3://b/p?endpoint_override=h:1&scheme=http", "s3://b/p/ray/x?endpoint_override=h:1&scheme=http"),
        ("s3://b/p/", "s3://b/p/ray/x"),
        ("gs://b", "gs://b/ray/x"),
        ("/mnt/what?", "/mnt/what?/ray/x"),
    ],
)
def test_a_key_goes_before_the_options_of_an_address(root: str, address: str) -> None:
    assert below(root, "ray/x") == address
    told = Storage(root).address("ray/x")
    assert told == address


def test_no_address_is_made_by_hand() -> None:
    """A path behind the options of a root is another option: `scheme=http/ray`."""
    package = Path(__file__).parents[1] / "deltasae_ray"
    by_hand = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if "storage.root}/" in line or "self.root}/" in line
    ]
    assert by_hand == []


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing.json"):
        Storage(str(tmp_path)).read_json("missing.json")
    (tmp_path / "half.json").write_text('{"a":')
    with pytest.raises(StorageError, match=r"half\.json is not valid JSON"):
        Storage(str(tmp_path)).read_json("half.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*storage\.root"):
        Storage(str(tmp_path)).write_bytes("file/below", b"x")


class Breaks:
    """A stream that fails after half of its bytes; closing it leaves them under the final name."""

    def __init__(self, path: str) -> None:
        self._path, self.closed = path, False

    def write(self, data: bytes) -> int:
        Path(self._path).write_bytes(bytes(data)[: len(data) // 2])
        raise OSError("AWS Error NETWORK_CONNECTION during UploadPart operation")

    def __enter__(self) -> "Breaks":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


class BrokenUploads:
    """An object store, by its interface, that completes an upload which has failed."""

    def __init__(self, *, leaves_half: bool = True) -> None:
        self._leaves_half = leaves_half

    def __getattr__(self, name: str) -> Any:
        return getattr(pafs.LocalFileSystem(), name)

    def open_output_stream(self, path: str) -> Breaks:
        if not self._leaves_half:
            raise OSError("AWS Error ACCESS_DENIED during CreateMultipartUpload operation")
        return Breaks(path)


@pytest.mark.parametrize("leaves_half", [True, False])
@pytest.mark.parametrize("size", [100, 5_000_000])
def test_a_failed_upload_leaves_no_half_and_takes_nothing_away(
    size: int, leaves_half: bool, tmp_path: Path
) -> None:
    storage = Storage("s3://bucket")
    storage.__dict__["_opened"] = (BrokenUploads(leaves_half=leaves_half), str(tmp_path))
    (tmp_path / "old.jsonl").write_bytes(b"what was there before")
    for name in ("new", "old.jsonl"):
        with pytest.raises(StorageError, match=f"{name} cannot be written.*AWS Error"):
            storage.write_bytes(name, b"x" * size)
    if not leaves_half:
        assert (tmp_path / "old.jsonl").read_bytes() == b"what was there before"
    elif size > 100:
        assert not list(tmp_path.iterdir()), "half a file is worse than none"


def test_sizes_and_folders_are_listed_and_a_store_that_does_not_answer_is_told(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("a/b/c", "a/d/e", "a/f"):
        storage.write_bytes(name, b"xyz")
    assert storage.sizes("a") == {"a/b/c": 3, "a/d/e": 3, "a/f": 3} and storage.sizes("b") == {}
    assert storage.folders("a") == ("b", "d") and storage.folders("b") == ()
    storage.delete_file("a/f")
    storage.delete_file("a/f")
    assert storage.sizes("a").keys() == {"a/b/c", "a/d/e"}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match="cannot be looked at"):
        storage.sizes("loop/below")
    with pytest.raises(StorageError, match="cannot be looked at"):
        storage.folders("loop/below")


def test_a_storage_travels_between_processes(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("k", b"v")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("k") == b"v"


def test_digests_follow_values_and_not_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError):
        digest(float("nan"))


def test_hookpoints_have_the_names_of_the_field() -> None:
    assert str(Hookpoint(12)) == "blocks.12.hook_resid_post"
    assert (
        Hookpoint.parse("blocks.12.hook_resid_post")
        == Hookpoint.parse(12)
        == Hookpoint.parse("12")
        == Hookpoint(12)
    )
    assert Hookpoint(12).hidden_states_index == 13
    assert resolve((3, 1), 4) == (Hookpoint(1), Hookpoint(3))
    module = Hookpoint(12, "lora", "self_attn.q_proj")
    assert Hookpoint.parse(str(module)) == module and str(module) == "blocks.12.self_attn.q_proj.hook_lora"
    assert at_sites([Hookpoint(1)], ("resid_post", "lora")) == (Hookpoint(1),), (
        "the residual stream's only: modules are an adapter's own"
    )
    for site, path in (("lora", ""), ("resid_post", "mlp")):
        with pytest.raises(HookpointError, match="a module is named at the site lora"):
            Hookpoint(1, site, path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "said"), [((), "layers 0 to 3|between 0 and 3"), ((4,), "layers 0 to 3"), ((1, 1), "twice")]
)
def test_layers_the_model_has_not_are_refused(layers: tuple[int, ...], said: str) -> None:
    with pytest.raises(HookpointError, match=said):
        resolve(layers, 4)
    with pytest.raises(HookpointError):
        Hookpoint.parse("resid")
