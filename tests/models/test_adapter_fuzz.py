"""Whatever an adapter's folder holds, it is an adapter or a typed error that names the folder; nothing but
the storage is written."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from torch import nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, read_config
from deltasae_ray.models.adapters import attach, import_adapter
from deltasae_ray.models.load import empty_model, load_model
from deltasae_ray.storage import Storage
from tests.fuzz import LONG, SHORT
from tests.models.adapter_folders import CHANGES, write_changed

World = tuple[Path, nn.Module, dict[str, bytes], nn.Module]


@pytest.fixture(scope="module")
def world(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> World:
    original = {name: (tiny_adapters[0] / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    return tmp_path_factory.mktemp("fuzz"), empty_model(tiny_model), original, load_model(tiny_model)


def attempt(world: World, change: dict[str, Any]) -> None:
    top, empty, original, loaded = world
    folder = top / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(top / "root", ignore_errors=True)
    folder.mkdir()
    write_changed(original, folder, change)
    given_files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    storage = Storage(str(top / "root"))
    try:
        ref = import_adapter(storage, folder, "fuzzed", empty)
    except AdapterError as e:
        assert str(folder) in str(e), "the user's folder is named"
        assert not (top / "root").exists(), "nothing is written of what is refused"
    else:
        attach(
            copy.deepcopy(loaded), {"fuzzed": storage.local(ref.key)}
        )  # what the plan took, a gang can load
        assert read_config(storage.local(ref.key))["r"] == ref.rank
    assert {p.name for p in top.iterdir()} <= {"adapter", "root"}
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == given_files


@given(CHANGES)
@SHORT
def test_a_changed_folder_is_an_adapter_or_a_typed_error(world: World, change: dict[str, Any]) -> None:
    attempt(world, change)


@pytest.mark.prove
@given(CHANGES)
@LONG
def test_ten_thousand_changed_folders_are_adapters_or_typed_errors(
    world: World, change: dict[str, Any]
) -> None:
    attempt(world, change)
