"""Other processes that train the same dictionary, each on its share of every batch."""

from torch import Tensor


class Peers:
    """None: this process trains alone. A subclass adds over a process group."""

    rank: int = 0
    """Which share of a batch is this process': rows rank, rank + world, …"""
    world: int = 1

    def sum(self, tensor: Tensor) -> None:
        """Replaces `tensor`, which all processes give in the same shape, by its sum over them."""
