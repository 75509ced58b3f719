"""A root that some node cannot see is refused before any work, and a shared folder is believed only after the nodes were asked."""

from pathlib import Path

import pytest

from deltasae_ray.errors import StorageError
from deltasae_ray.runtime import shared_root as shared
from deltasae_ray.runtime.shared_root import blind_nodes, check_root
from deltasae_ray.storage import Storage


def test_a_folder_is_no_root_for_several_nodes_or_for_a_cluster_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Storage(str(tmp_path))
    check_root(local, 1, shared=False)
    check_root(Storage("s3://bucket/study"), 9, shared=False)
    with pytest.raises(StorageError, match="has 2 nodes.*storage.shared=true"):
        check_root(local, 2, shared=False)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "spot")
    with pytest.raises(StorageError, match="adds nodes on demand.*storage.shared=true"):
        check_root(local, 1, shared=False)
    check_root(Storage("s3://bucket/study"), 1, shared=False)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_nodes_are_asked_whether_they_see_a_folder_that_is_called_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_SEEN_S", 1.0)
    check_root(Storage(str(tmp_path)), 2, shared=True)
    assert not list(tmp_path.iterdir())
    # a node that has another folder under this path: what the driver writes is elsewhere
    monkeypatch.setattr(Storage, "write_bytes", lambda *_: None)
    with pytest.raises(StorageError, match=r"is another folder, or none, on [\d.]+: mount it"):
        check_root(Storage(str(tmp_path)), 2, shared=True)
    assert blind_nodes(str(tmp_path)) == []
