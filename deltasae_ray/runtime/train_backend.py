"""Ray Train's process group on loopback, for workers that all stand on this machine; torch's own store would
listen on every address."""

import os
from dataclasses import dataclass
from typing import Any

from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from deltasae_ray.runtime.rendezvous import AGENT_STORE, INTERFACES, loopback_store


@dataclass
class LoopbackConfig(TorchConfig):
    """Says to Ray Train that all workers stand on this machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    """Opens the store in the first worker before torch would, so that all workers are its clients."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        port = worker_group.execute_single(0, _hold_store)
        at_port: Any = _AtPort(worker_group, port)
        super().on_start(at_port, backend_config)


class _AtPort:
    """A worker group that answers Ray's question for an address with the store's."""

    def __init__(self, group: Any, port: int) -> None:
        self._group, self._port = group, port

    def __len__(self) -> int:
        return len(self._group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def execute_single(self, index: int, function: Any, *args: Any, **kwargs: Any) -> Any:
        if function is get_address_and_port:
            self._group.execute(_expect_store)
            return "127.0.0.1", self._port
        return self._group.execute_single(index, function, *args, **kwargs)


_held: list[Any] = []
"""The stores of this process: one lives as long as the worker."""


def _hold_store() -> int:
    _held.append(loopback_store())
    return _held[-1].port


def _expect_store() -> None:
    os.environ.update(INTERFACES | AGENT_STORE)
