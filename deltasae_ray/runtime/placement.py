"""Whether what a study asks Ray for has room, node by node: an actor stands on one node, whatever all of them
have together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Node = Mapping[str, float]
"""What one node has, by Ray's names: "CPU", "GPU", "memory" (bytes)."""
_TOLERANCE = 1e-6
"""Of sums of fractions such as 0.1 CPUs."""


@dataclass(frozen=True)
class Actors:
    """`count` actors that each ask for the same."""

    count: int
    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    """Bytes."""

    @property
    def asked(self) -> Node:
        """What each asks for, by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}

    def slots(self, node: Node, beside: "Actors | None" = None, others: int = 0) -> int:
        """How many of them, up to `count`, the node holds, beside `others` actors of another kind."""
        room, taken = float(self.count), beside.asked if beside else {}
        for name, asked in self.asked.items():
            if asked:
                room = min(room, (node.get(name, 0.0) - others * taken.get(name, 0.0)) / asked + _TOLERANCE)
        return max(0, int(room))

    def fit_on(self, nodes: Sequence[Node]) -> bool:
        """Whether all have room at once, where there is nothing else."""
        return sum(self.slots(node) for node in nodes) >= self.count


def never_in_each_others_way(nodes: Sequence[Node], one: Actors, other: Actors) -> bool:
    """Whether all of both kinds have room at once wherever Ray puts those that come first.

    That there is some placement for all is not enough: Ray places actors as they come, and moves none. Two
    gangs of 1 CPU on two nodes of 2 CPUs leave no room for a worker of 2 CPUs if they stand apart.
    """
    return _least_room(nodes, one, other) >= other.count and _least_room(nodes, other, one) >= one.count


def _least_room(nodes: Sequence[Node], first: Actors, then: Actors) -> int:
    """How many of `then` have room once all of `first` stand where they leave the least; -1 where `first` has
    not room itself."""
    least: dict[int, int] = {0: 0}
    """Placed so far of `first` → the least room for `then` on the nodes seen so far."""
    for node in nodes:
        added = [(placed, then.slots(node, first, placed)) for placed in range(first.slots(node) + 1)]
        following: dict[int, int] = {}
        for before, room in least.items():
            for placed, left in added:
                if (total := before + placed) <= first.count:
                    following[total] = min(following.get(total, room + left), room + left)
        least = following
    return least.get(first.count, -1)
