"""Worker processes of Ray are watched, and the driver tells of those that were ended because they stood
still.

The process beside a worker leaves its line in the cluster's key-value store; the driver looks there.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from deltasae_ray import heartbeat
from deltasae_ray.heartbeat import Limits
from deltasae_ray.logs import label, write_json

log = logging.getLogger(__name__)
_NAMESPACE = b"deltasae_ray"
_LOOK_S = 2.0


def watch(what: str, limits: Limits) -> None:
    """Has this worker process of Ray watched; `what` and its node are told where it stalls."""
    import ray
    import ray.util

    label(**limits.labels)
    write_json()
    context = ray.get_runtime_context()
    tell = [sys.executable, "-m", "deltasae_ray.stalls", context.gcs_address, context.get_job_id()]
    heartbeat.watch(f"{what} on node {ray.util.get_node_ip_address()}", limits, tell)


def watched(function: Callable[..., Any], limits: Limits, *arguments: Any) -> Any:
    """What a task makes of its arguments, watched as one piece of work; a task of its own size may take
    hours."""
    watch(f"the task {function.__name__}", limits)
    with heartbeat.unit(function.__name__, heartbeat.LOADING_S):
        return function(*arguments)


@contextmanager
def warning_of_stalls() -> Iterator[None]:
    """While the body runs, the driver warns of every worker that was ended because it stood still. Elsewhere
    it does nothing: the lines are the driver's."""
    import ray

    if not ray.is_initialized() or getattr(ray.get_runtime_context().worker, "mode", None) != ray.SCRIPT_MODE:
        yield
        return
    prefix, over = _key(ray.get_runtime_context().get_job_id()), threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            _tell(prefix)

    thread = threading.Thread(target=look, daemon=True, name="stalls")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)  # a cluster that is gone answers nothing
        if not thread.is_alive():
            _tell(prefix)


def _tell(prefix: bytes) -> None:
    from ray.experimental import internal_kv

    with suppress(
        Exception
    ):  # a cluster that is gone, or ends just now: what it takes to tell must not end the study
        for key in internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE):
            line = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
            if (
                internal_kv._internal_kv_del(key, namespace=_NAMESPACE) and line
            ):  # stages side by side look too: one of them tells
                log.warning("%s", line.decode(errors="replace"))


def _key(job: str) -> bytes:
    return f"stall:{job}:".encode()


def leave(address: str, job: str, line: str) -> None:
    """Leaves a line for the driver of a job."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - compiled

    GcsClient(address=address).internal_kv_put(
        _key(job) + uuid4().hex.encode(), line.encode(), True, _NAMESPACE, timeout=10
    )


if __name__ == "__main__":
    leave(*sys.argv[1:4])
