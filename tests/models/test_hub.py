"""Names on the hub, with and without a revision; the hub itself is not asked."""

from pathlib import Path

import huggingface_hub
import pytest

from deltasae_ray.errors import ModelError
from deltasae_ray.models.adapters import attach, import_adapter
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.hub import HubName
from deltasae_ray.models.load import empty_model, load_model
from deltasae_ray.models.source import resolve_model
from deltasae_ray.storage import Storage
from tests.tiny import save_model


def test_a_name_may_carry_a_revision() -> None:
    assert HubName.of("owner/name") == HubName("owner/name", None)
    named = HubName.of("owner/name@refs/pr/1")
    assert named == HubName("owner/name", "refs/pr/1") and named.name == "name"


@pytest.mark.parametrize("base", ["https://ann:hidden0001@host/a.git", "git+ssh://git:hidden0001@host/a"])
def test_an_address_is_no_name_on_the_hub_and_its_password_is_not_shown(base: str) -> None:
    """Cut at the @ it would lose what tells a password from a name."""
    with pytest.raises(ModelError, match="owner/name") as raised:
        resolve_model(ModelConfig(base))
    assert "hidden0001" not in str(raised.value)


@pytest.mark.parametrize("revision", ["../../../victim", "refs/../../x", "/tmp/x", ".."])
def test_a_revision_that_is_a_path_out_of_the_cache_is_refused(revision: str) -> None:
    with pytest.raises(ModelError, match="a revision is a branch, tag or commit"):
        resolve_model(ModelConfig(f"owner/name@{revision}"))


@pytest.mark.parametrize("text", ["owner/name@", "@main"])
def test_half_a_revision_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ModelError, match="is not owner/name@revision: name a branch, tag or commit"):
        resolve_model(ModelConfig(text))


def test_a_revision_that_cannot_be_had_offline_is_named() -> None:
    with pytest.raises(ModelError, match=r"'owner/name@v1' is no folder here and cannot be downloaded"):
        resolve_model(ModelConfig("owner/name@v1"))


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    assert resolve_model(ModelConfig(str(save_model(tmp_path / "name@v1")))).folder == tmp_path / "name@v1"


def test_two_revisions_are_two_models_and_equal_content_is_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"v1": tiny_model, "v2": save_model(tmp_path / "other", seed=1), None: tiny_model}

    def fetched(repo: str, *, allow_patterns: list[str], revision: str | None = None) -> str:  # noqa: ARG001  the hub is not here
        assert repo == "owner/name"
        return str(folders[revision])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    first, second, newest = (
        resolve_model(ModelConfig(f"owner/name{at}")).digest for at in ("@v1", "@v2", "")
    )
    assert first == newest != second


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("https://huggingface.co/owner/name/tree/main", "is an address.*give owner/name$"),
        ("s3://bucket/model", "is an address.*download it, and give the folder"),
        ("file:///data/model", "give /data/model$"),
        ("/no/such/model", "is no folder of this machine"),
        ("some/owner/name", "is no folder of this machine"),
        (
            "owner/name",
            "cannot be downloaded.*Is the name right .owner/name.. A gated or private one needs HF_TOKEN",
        ),
    ],
)
def test_what_is_neither_a_folder_nor_on_the_hub_is_told_with_what_to_give(place: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        resolve_model(ModelConfig(place))


def test_a_file_is_told_with_its_folder(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=f"is a file: give the folder that holds it, {tiny_model}$"):
        resolve_model(ModelConfig(str(tiny_model / "model.safetensors")))


def in_hub_cache(source: Path, cache: Path) -> Path:
    """A copy as the hub's client lays it out: a snapshot of symlinks to blobs."""
    snapshot, blobs = cache / "models--owner--name/snapshots/0a1b", cache / "models--owner--name/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(source.iterdir())):
        (blobs / str(i)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    return snapshot


def test_snapshots_of_the_hubs_cache_are_the_folders_that_their_symlinks_lead_to(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = in_hub_cache(tiny_model, tmp_path / "a"), in_hub_cache(tiny_adapters[0], tmp_path / "b")
    assert resolve_model(ModelConfig(str(base))).digest == resolve_model(ModelConfig(str(tiny_model))).digest
    storage, empty = Storage(str(tmp_path / "root")), empty_model(base)
    kept = import_adapter(storage, adapter, "x", empty, base=str(base))
    assert kept.digest == import_adapter(storage, tiny_adapters[0], "x", empty).digest
    attach(load_model(base), {"x": adapter})
