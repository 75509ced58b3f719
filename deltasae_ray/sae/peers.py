"""Other processes that train the same thing, each on its share of every batch."""

from dataclasses import dataclass

import torch.distributed
from torch import Tensor


class Peers:
    """None: this process trains alone. A subclass adds over a process group."""

    rank: int = 0
    """Which share of a batch is this process': rows rank, rank + world, …"""
    world: int = 1

    def sum(self, tensor: Tensor) -> None:
        """Replaces `tensor`, which all processes give in the same shape, by its sum over them."""


@dataclass
class ProcessGroup(Peers):
    """The processes of torch's default group, such as the workers of a Ray Train run."""

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> None:
        torch.distributed.all_reduce(tensor)
