import pickle
from pathlib import Path

import pytest

from deltasae_ray.errors import HookpointError, StorageError
from deltasae_ray.hookpoints import Hookpoint, resolve
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


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing.json"):
        Storage(str(tmp_path)).read_json("missing.json")
    (tmp_path / "half.json").write_text('{"a":')
    with pytest.raises(StorageError, match=r"half\.json is not valid JSON"):
        Storage(str(tmp_path)).read_json("half.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*storage\.root"):
        Storage(str(tmp_path)).write_bytes("file/below", b"x")


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
    assert Hookpoint.parse("blocks.12.hook_resid_post") == Hookpoint.parse(12) == Hookpoint.parse("12") == Hookpoint(12)
    assert Hookpoint(12).hidden_states_index == 13
    assert resolve((3, 1), 4) == (Hookpoint(1), Hookpoint(3))


@pytest.mark.parametrize(("layers", "said"), [((), "layers 0 to 3|between 0 and 3"), ((4,), "layers 0 to 3"), ((1, 1), "twice")])
def test_layers_the_model_has_not_are_refused(layers: tuple[int, ...], said: str) -> None:
    with pytest.raises(HookpointError, match=said):
        resolve(layers, 4)
    with pytest.raises(HookpointError):
        Hookpoint.parse("resid")
