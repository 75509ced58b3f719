"""Names on the hub, with and without a revision; the hub itself is not asked."""

from pathlib import Path

import huggingface_hub
import pytest

from deltasae_ray.errors import ModelError
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.hub import HubName
from deltasae_ray.models.source import resolve_model
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
    first, second, newest = (resolve_model(ModelConfig(f"owner/name{at}")).digest for at in ("@v1", "@v2", ""))
    assert first == newest != second
