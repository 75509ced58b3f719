"""Where ranks on one machine find each other: a store, and listeners, that answer on loopback only."""

import re
import socket
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from deltasae_ray.runtime.nodes import one_machine

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

_LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"
INTERFACES = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
"""Of ranks that all stand on one node: gloo and NCCL listen there too."""
AGENT_STORE = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
"""torch's words for: the store is there already."""

_BROKEN = re.compile(
    r"gloo|nccl|operation (timed out|timeout)|\bTCPStore\b|Connection (closed|reset) by peer", re.IGNORECASE
)
"""What errors of collectives say that have no type of their own."""


def broken_collective(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is a collective that timed out or lost a peer: a loss of
    this gang, and no bug that would come again."""
    while True:
        if isinstance(error, torch.distributed.DistError):
            return True
        if type(error) is RuntimeError and _BROKEN.search(str(error)):
            return True
        if (before := error.__cause__ or error.__context__) is None:
            return False
        error = before


def loopback_store(timeout: timedelta = timedelta(minutes=30)) -> Any:
    """Makes a store on a free port of 127.0.0.1. torch itself would listen on every address of the machine,
    and ask nobody who he is.

    The caller holds it: a port that is only chosen here, and bound by a rank seconds later, another gang on
    this node may take meanwhile.
    """
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        port = listening.getsockname()[1]
        return torch.distributed.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1",
            port,
            None,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )


def torch_config() -> "TorchConfig":
    """Says how Ray Train's workers find each other: on loopback where there is only this machine."""
    from ray.train.torch import TorchConfig

    from deltasae_ray.runtime.train_backend import LoopbackConfig

    return LoopbackConfig() if one_machine() else TorchConfig()
