"""Whether all nodes of a cluster see the storage root: an object store they do, a folder only where somebody has mounted it on each."""

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
_START_S = 120.0  # until a process is there that looks


def check_root(storage: Storage, nodes: int, *, shared: bool) -> None:
    """Raises StorageError where a root is a folder that not all nodes see.

    Args:
        nodes: how many there are now; where nodes come on demand, there will be others.
        shared: the user says that it is the same folder everywhere. Those nodes that are there are asked.
    """
    if not storage.is_local or nodes == 1 and not autoscaling():
        return
    if not shared:
        there = "adds nodes on demand" if autoscaling() else f"has {nodes} nodes"
        raise StorageError(
            f"storage.root={storage.root} is a local folder, but the cluster {there}: give s3:// or gs://, or set storage.shared=true if "
            "every node sees this folder under the same path (NFS)"
        )
    key = f".seen-{uuid4().hex}"
    storage.write_bytes(key, b"")
    try:
        blind = blind_nodes(storage.path(key))
    finally:
        storage.local(key).unlink(missing_ok=True)
    if blind:
        raise StorageError(
            f"storage.shared=true, but {storage.root} is another folder, or none, on {', '.join(blind)}: mount it on every node under the "
            "same path, or give s3:// or gs://"
        )


def blind_nodes(path: str) -> list[str]:
    """Addresses of the nodes that do not see the file `path`; one that is lost meanwhile is not counted."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    told = []
    for node in (n for n in ray.nodes() if n["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        told.append((node["NodeManagerAddress"], look.options(scheduling_strategy=there).remote(path, _SEEN_S)))
    blind = []
    for address, seen in told:
        try:
            if not ray.get(seen, timeout=_SEEN_S + _START_S):
                blind.append(address)
        except GetTimeoutError:
            log.warning("the node %s did not say within %.0f s whether it sees the storage root", address, _SEEN_S + _START_S)
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
