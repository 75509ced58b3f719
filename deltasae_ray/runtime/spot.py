"""Turns a cloud's notice that it takes a spot machine back into a drain of its Ray node.

A drained node gets no new work, what it runs goes on until the cloud ends it, and its loss spends none of the
budgets that are meant for faults. Ray does this by itself nowhere but on Kubernetes. So each worker machine
runs `python -m deltasae_ray.runtime.spot aws` (or `gcp`) beside Ray, and a Kubernetes pod runs
`python -m deltasae_ray.runtime.spot now` when it is told to end.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from typing import Any

from deltasae_ray.cli import say

POLL_S = 5.0
"""Between two looks at the cloud's notice: Amazon gives two minutes, Google 30 s."""
GOOGLE_S = 30.0
_LOOK_S = 2.0
"""Between two looks of a worker at whether its node is drained."""
_AMAZON, _GOOGLE = "http://169.254.169.254", "http://metadata.google.internal"
# A proxy never stands between a machine and its metadata.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Notice = Callable[[], float | None]
"""Seconds that this machine has left, or None where no notice was given."""


def amazon(base: str = _AMAZON) -> float | None:
    """Seconds until Amazon ends this machine; None: no notice.

    Raises:
        OSError: the metadata service does not answer.
    """
    token = _ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    notice = _ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    if notice is None:
        return None
    end = datetime.fromisoformat(json.loads(notice)["time"]).timestamp()
    return max(0.0, end - time.time())


def google(base: str = _GOOGLE) -> float | None:
    """Seconds until Google ends this machine, at least; None: no notice.

    Raises:
        OSError: the metadata service does not answer.
    """
    notice = _ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GOOGLE_S if notice == "TRUE" else None


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The answer; None where there is nothing at the address."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with _OPENER.open(request, timeout=5) as answer:
            return answer.read(4096).decode()
    except urllib.error.HTTPError as e:
        if e.code == 404:
            return None
        raise


def wait_for(notice: Notice, every: float = POLL_S) -> float:
    """Waits until the cloud gives notice; gives the seconds that are left. A metadata service that does not
    answer is told once, and asked again."""
    silent = False
    while True:
        try:
            left = notice()
        except (OSError, ValueError, KeyError) as e:
            if not silent:
                say(f"The cloud's metadata service does not answer ({e}); asking on.")
            silent, left = True, None
        if left is not None:
            return left
        time.sleep(every)


def drain(seconds: float, address: str | None = None, *, wait: bool = False) -> list[str]:
    """Drains the Ray nodes of this machine; gives their ids. The head is left alone: with it all is lost.

    Args:
        seconds: after which the machine ends.
        address: of Ray's control store, host:port; None: that of the Ray which runs here.
        wait: until the nodes are gone, or the time is up: what they run may use it.

    Raises:
        ConnectionError: no Ray runs here, or none answers.
    """
    from ray._private import services
    from ray.util import get_node_ip_address

    raylet: Any = import_module("ray._raylet")  # Ray has no types for these
    messages: Any = import_module("ray.core.generated.autoscaler_pb2")
    named: Any = address
    client = raylet.GcsClient(address=services.canonicalize_bootstrap_address_or_die(named))
    here, end = get_node_ip_address(), int((time.time() + seconds) * 1000)
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    message = "the cloud takes the machine back"
    drained = [n for n in _alive(client, here) if client.drain_node(n, reason, message, end)[0]]
    while wait and time.time() * 1000 < end and set(drained) & set(_alive(client, here)):
        time.sleep(0.5)
    return drained


def _alive(client: Any, address: str) -> list[str]:
    """Ids of the Ray nodes at an address that live and are no head."""
    nodes = client.get_all_node_info(timeout=10).items()
    return [
        id_.hex()
        for id_, node in nodes
        if node.node_manager_address == address and node.state == 0 and not node.is_head_node
    ]


class Leaving:
    """Whether this process's node is being drained: True once, when a worker first hears of it."""

    def __init__(self) -> None:
        self._next, self._known = 0.0, False

    def __call__(self) -> bool:
        """Asks Ray at most every two seconds; False without Ray."""
        ray: Any = sys.modules.get("ray")
        if self._known or time.monotonic() < self._next or ray is None or not ray.is_initialized():
            return False
        self._next = time.monotonic() + _LOOK_S
        self._known = ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()
        return self._known


node_is_leaving = Leaving()
"""Of this process. Ray Train's `get_preemption_info` is no use here: it waits for all workers to ask, and
each of these has its own dictionaries."""


def main(words: list[str] | None = None) -> None:
    """Runs `python -m deltasae_ray.runtime.spot`."""
    parser = argparse.ArgumentParser(prog="python -m deltasae_ray.runtime.spot", description=drain.__doc__)
    parser.add_argument("when", choices=["aws", "gcp", "now"], help="whose notice to wait for; now: none")
    parser.add_argument("--seconds", type=float, default=20.0, help="that are left, with `now`")
    parser.add_argument("--address", help="of Ray's control store, if not of the Ray that runs here")
    asked = parser.parse_args(words)
    notice = {"aws": amazon, "gcp": google}.get(asked.when)
    left = wait_for(notice) if notice else asked.seconds
    nodes = drain(left, asked.address, wait=notice is None)
    say(f"{left:.0f} s left; drained: {', '.join(nodes) or 'no node of this machine'}")


if __name__ == "__main__":
    main()
