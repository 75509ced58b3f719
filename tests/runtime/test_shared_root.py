"""A root that some node cannot see is refused before any work, and a shared folder is a root only after the
nodes were asked."""

from pathlib import Path

import pytest

from deltasae_ray.errors import StorageError
from deltasae_ray.runtime import shared_root as shared
from deltasae_ray.runtime.shared_root import blind_nodes, check_root, on_network
from deltasae_ray.storage import Storage


def test_a_folder_is_no_root_for_several_nodes_or_for_a_cluster_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Storage(str(tmp_path))
    check_root(local, 1)
    check_root(Storage("s3://bucket/study"), 9)
    monkeypatch.setattr(shared, "blind_nodes", lambda _: ["10.0.0.2"])
    with pytest.raises(
        StorageError, match=r"another folder, or none, on 10\.0\.0\.2: mount it on every node.*or give s3://"
    ):
        check_root(local, 2)
    monkeypatch.setattr(shared, "blind_nodes", lambda _: [])
    check_root(local, 2)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "spot")
    monkeypatch.setattr(shared, "on_network", lambda _: False)
    with pytest.raises(StorageError, match="adds nodes on demand.*NFS"):
        check_root(local, 1)
    monkeypatch.setattr(shared, "on_network", lambda _: True)
    check_root(local, 1)
    check_root(Storage("s3://bucket/study"), 1)


def test_a_folder_that_others_can_mount_is_told_from_one_of_this_machine(tmp_path: Path) -> None:
    mounts, folder = tmp_path / "mounts", tmp_path / "a b"
    folder.mkdir()
    place = str(folder).replace(" ", "\\040")
    for kinds, told in (
        (("ext4", "nfs4"), True),
        (("nfs", "ext4"), False),
        (("overlay", "fuse.s3fs"), True),
        (("tmpfs", "tmpfs"), False),
    ):
        mounts.write_text(f"server:/x / {kinds[0]} rw 0 0\nserver:/y {place} {kinds[1]} rw 0 0\n")
        assert on_network(folder / "not" / "yet", mounts) is told
    assert not on_network(folder, tmp_path / "no such file")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_nodes_are_asked_whether_they_see_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_SEEN_S", 1.0)
    check_root(Storage(str(tmp_path)), 2)
    assert not list(tmp_path.iterdir())
    # a node that has another folder under this path: what the driver writes is elsewhere
    monkeypatch.setattr(Storage, "write_bytes", lambda *_: None)
    with pytest.raises(StorageError, match=r"is another folder, or none, on [\d.]+: mount it"):
        check_root(Storage(str(tmp_path)), 2)
    assert blind_nodes(str(tmp_path)) == []
