"""What a study of any size costs the driver, the store and the gangs: measured unit costs times counts. Pure,
and what the plan prints."""

from dataclasses import dataclass
from math import ceil

# Measured on one core of a server CPU: docs/scale.md says when, and by which command.
GPU_FLOPS = 2e13
"""Operations a second of a GPU that a gang reaches with the model's passes; an order of magnitude."""
TOKEN_BYTES = 26.0
"""Of the text that the driver holds, for each token."""
UNIT_BYTES = 6.0
"""Of a unit that waits in Ray's object store, on the head, for each token."""
ROW_BYTES = 380.0
"""Of the manifest, in a process that has read it, for each shard, with what reading it took."""
ROW_S = 1.7e-6
"""To read a row of the manifest from a file."""
REQUEST_S = 0.03
"""One request of an object store, alone; deletes and looks at commit records go by 16 at a time."""
AT_ONCE = 16
LEAF_CALLS, CALL_S = 800, 0.01
"""Calls of an MLflow server for each dictionary, and what one takes."""
OPEN_REQUESTS = 29
"""To open a harvest that this process has not opened since it last changed."""
PAGE_BYTES = 700_000.0
"""Of the page, for each adapter."""
DOLLARS_PER_MILLION_REQUESTS = 5.0
"""Puts and listings, at list prices of S3; reads cost a tenth."""
DRIVER_BYTES = 1.5e9
"""Of a driver with its libraries, before any text."""


@dataclass(frozen=True)
class Scale:
    """The counts that costs depend on."""

    tokens: int
    """Of all text that is harvested."""
    adapters: int
    layers: int = 6
    dictionaries: int = 2
    """For each adapter and layer."""
    sources: int = 0
    """Harvested per unit; 0: base, adapters and the random one."""
    unit_tokens: int = 1024
    gangs: int = 8
    flops: float = 4 * GPU_FLOPS
    """Operations a second of a gang."""
    parameters: float = 9.2e9
    """Of the model, up to the deepest layer."""
    dollars_per_hour: float = 0.0
    """Of a gang's machine."""

    @property
    def all_sources(self) -> int:
        return self.sources or self.adapters + 2

    @property
    def units(self) -> int:
        return ceil(self.tokens / self.unit_tokens)

    @property
    def rows(self) -> int:
        return self.units * self.all_sources

    @property
    def leaves(self) -> int:
        return self.adapters * self.layers * self.dictionaries


@dataclass(frozen=True)
class Costs:
    """What a study of some scale takes."""

    head_bytes: dict[str, float]
    """Part → most memory of the head; the parts are held at once."""
    seconds: dict[str, float]
    """Part → how long it takes; the gangs' part falls with their number, and the others are the driver's."""
    requests: dict[str, float]
    """Part → requests of the object store."""
    dollars: float
    """Of gangs while the harvest runs, and of requests, at list prices."""

    @property
    def memory(self) -> float:
        return sum(self.head_bytes.values())

    @property
    def all_requests(self) -> float:
        return sum(self.requests.values())

    @property
    def limit(self) -> str:
        """The part that takes longest: more gangs help only where it is they."""
        return max(self.seconds, key=lambda part: self.seconds[part])

    def __str__(self) -> str:
        dollars = f", {self.dollars:,.0f} dollars at list prices" if self.dollars >= 1 else ""
        return (
            f"{self.memory / 1e9:,.1f} GB of memory, {self.all_requests:,.0f} requests of the store{dollars};"
            f" what takes longest of the harvest and its books: {self.limit}"
        )


def costs(of: Scale) -> Costs:
    """Counts what a study takes; every term is a unit cost times a count."""
    per_unit = of.all_sources + 1  # a shard each, and a commit record
    passes = 2.0 * of.parameters * of.tokens * of.all_sources
    seconds = {
        "gangs": passes / (of.gangs * of.flops),
        "commit records": 2 * of.units * REQUEST_S / AT_ONCE,
        "manifest": of.rows * ROW_S,
        "MLflow": of.leaves * LEAF_CALLS * CALL_S,
    }
    requests = {
        "shards": float(of.units * of.all_sources),
        "commit records": 3.0 * of.units,  # put, read, deleted
        "reads of fits and figures": float(of.rows * of.layers),
        "opened harvests": float(OPEN_REQUESTS * of.leaves),
    }
    puts = of.units * per_unit
    dollars = (
        seconds["gangs"] / 3600 * of.gangs * of.dollars_per_hour
        + (puts + (sum(requests.values()) - puts) / 10) * DOLLARS_PER_MILLION_REQUESTS / 1e6
    )
    return Costs(
        {
            "driver": DRIVER_BYTES,
            "text": TOKEN_BYTES * of.tokens,
            "units that wait": UNIT_BYTES * of.tokens,
            "manifest": ROW_BYTES * of.rows,
            "page": PAGE_BYTES * of.adapters,
        },
        seconds,
        requests,
        dollars,
    )
