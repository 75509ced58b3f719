"""Whether all nodes of a cluster see the storage root: an object store they do, a folder only where somebody
has mounted it on each."""

import logging
import os
import time
from pathlib import Path
from uuid import uuid4

from deltasae_ray.errors import StorageError
from deltasae_ray.runtime.nodes import autoscaling
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)
_SEEN_S = 10.0  # that a network file system may take until another node sees a new file
_NETWORK = {"nfs", "nfs4", "lustre", "cifs", "smb3", "ceph", "gpfs", "beegfs", "wekafs", "gfs2", "ocfs2"}
"""Types of file systems that several machines mount."""
_NETWORK_FUSE = {
    "fuse.glusterfs",
    "fuse.ceph-fuse",
    "fuse.juicefs",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.moosefs",
}
_START_S = 120.0  # until a process is there that looks


def check_root(storage: Storage, nodes: int) -> None:
    """Raises StorageError where a root is a folder that not all nodes see. Those that are there are asked.

    Args:
        nodes: how many there are now. Where others come on demand, which cannot be asked, only a network file
            system will do.
    """
    if not storage.is_local or nodes == 1 and not autoscaling():
        return
    if autoscaling() and not on_network(storage.local("")):
        raise StorageError(
            f"storage.root={storage.root} is a folder of this machine, but the cluster adds nodes on demand:"
            " give s3:// or gs:// (DELTASAE_STORAGE_ROOT and DELTASAE_TRACKING_URI set both places for all"
            " jobs), or a folder of a network file system (NFS) that is mounted on every node under the same"
            " path"
        )
    key = f".seen-{uuid4().hex}"
    storage.write_bytes(key, b"")
    try:
        blind = blind_nodes(storage.path(key))
    finally:
        storage.local(key).unlink(missing_ok=True)
    if blind:
        raise StorageError(
            f"storage.root={storage.root} is another folder, or none, on {', '.join(blind)}: mount it on"
            " every node under the same path (NFS), or give s3:// or gs:// (DELTASAE_STORAGE_ROOT and"
            " DELTASAE_TRACKING_URI set both places for all jobs)"
        )


def on_network(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a folder, or the nearest one above it that exists, is of a file system that several machines
    can mount."""
    at = next((f for f in (folder.absolute(), *folder.absolute().parents) if f.exists()), Path("/")).resolve()
    mount = Path("/"), ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # not Linux: what cannot be told is taken for a folder of this machine
        return False
    for _, place, kind, *_ in (line.split() for line in lines):
        mounted = Path(place.encode().decode("unicode_escape"))  # a blank in a path is written \\040
        if at.is_relative_to(mounted) and len(mounted.parts) >= len(mount[0].parts):
            mount = mounted, kind
    return mount[1] in _NETWORK | _NETWORK_FUSE


def blind_nodes(path: str) -> list[str]:
    """Addresses of the nodes that do not see the file `path`; one that is lost meanwhile is not counted."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    parts = []
    for node in (n for n in ray.nodes() if n["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        parts.append(
            (node["NodeManagerAddress"], look.options(scheduling_strategy=there).remote(path, _SEEN_S))
        )
    blind = []
    for address, seen in parts:
        try:
            if not ray.get(seen, timeout=_SEEN_S + _START_S):
                blind.append(address)
        except GetTimeoutError:
            log.warning(
                "the node %s did not say within %.0f s whether it sees the storage root",
                address,
                _SEEN_S + _START_S,
            )
            blind.append(address)
        except RayError:
            continue
    return blind


def _sees(path: str, within: float) -> bool:
    end = time.monotonic() + within
    while not os.path.exists(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
        if (folder := Path(path).parent).is_dir():
            os.listdir(folder)  # a network file system remembers for a while what it did not have
    return True
