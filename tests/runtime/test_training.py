"""What Ray Train left of a run is looked at before the next one follows it."""

import json
from pathlib import Path

import pytest

from deltasae_ray.errors import StorageError
from deltasae_ray.runtime.training import SNAPSHOT, check_run
from deltasae_ray.storage import Storage

KEY = "adapt-runs/0123456789abcdef"


def snapshot(name: object) -> dict:
    """As Ray Train 2.60 writes it, of one checkpoint."""
    result = {"version": 0, "checkpoint_dir_name": name, "metrics": {"step": 1}}
    return {
        "ray_version": "2.60.0", "checkpoint_results": [result], "checkpoint_report_indices": [0],
        "latest_checkpoint_result": result,
        "pending_training_results": [], "pending_validation_specs": [], "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [], "failed_validation_checkpoint_dir_names": [],
    }  # fmt: skip


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "root"))
    made.write_bytes(f"{KEY}/checkpoint_2026/progress.json", b"{}")
    return made


def test_a_run_that_is_as_ray_train_left_it_is_followed(storage: Storage) -> None:
    check_run(storage, "adapt-runs/never-begun")
    check_run(storage, KEY)
    storage.write_json(f"{KEY}/{SNAPSHOT}", snapshot("checkpoint_2026"))
    check_run(storage, KEY)


@pytest.mark.parametrize(
    "name",
    [
        "../../../victim",
        "checkpoint_/../../../../victim",
        "/etc",
        "",
        ".",
        5,
        None,
        ["checkpoint_2026"],
        "study.json",
    ],
)
@pytest.mark.parametrize("where", ["checkpoint_results", "validated_checkpoint_dir_names"])
def test_a_checkpoint_elsewhere_which_ray_train_would_read_and_then_delete_is_refused(
    storage: Storage, name: object, where: str
) -> None:
    found = snapshot("checkpoint_2026")
    found[where] = [name] if where.endswith("names") else snapshot(name)[where]
    storage.write_json(f"{KEY}/{SNAPSHOT}", found)
    with pytest.raises(StorageError, match=f"{SNAPSHOT}|leads out"):
        check_run(storage, KEY)


@pytest.mark.parametrize("content", [b"[]", b"half", b"\x80\x04."])
def test_a_list_of_checkpoints_that_is_none_is_told_with_its_file(storage: Storage, content: bytes) -> None:
    storage.write_bytes(f"{KEY}/{SNAPSHOT}", content)
    with pytest.raises(StorageError, match=f"{SNAPSHOT} .*delete it"):
        check_run(storage, KEY)


@pytest.mark.parametrize("what", ["run", "checkpoint", "file"])
def test_a_symlink_in_a_run_that_leads_out_is_refused(storage: Storage, what: str, tmp_path: Path) -> None:
    place = storage.local(
        {"run": KEY, "checkpoint": f"{KEY}/checkpoint_2026", "file": f"{KEY}/checkpoint_2026/progress.json"}[
            what
        ]
    )
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    storage.write_bytes("study.json", json.dumps({}).encode())
    with pytest.raises(StorageError, match="leads out of .* by a symlink"):
        check_run(storage, KEY)
