"""What is written down beside the vectors: the harvest's spec, its units, its sources, and one row per shard."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Literal

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ShardError, StorageError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.storage import Storage, digest

BASE = "base"
"""Name and digest of the source that holds the base model's activations; every other source holds deltas."""


@dataclass(frozen=True)
class Unit:
    """A unit of this study, as units.json lists it."""

    name: str
    split: str
    corpus: str
    tokens: int
    """Rows of each of its shards."""

    @classmethod
    def of(cls, batch: TokenBatch) -> "Unit":
        return cls(name=batch.name, split=batch.split, corpus=batch.corpus, tokens=batch.num_tokens)


@dataclass(frozen=True)
class Source:
    """What was harvested: the base model, an adapter, or a random adapter as a control."""

    name: str
    kind: Literal["base", "adapter", "random"]
    digest: str
    """Of the adapter's files or recipe; "base" for the base model, whose identity is part of the harvest's key."""
    rank: int | None = None
    alpha: float | None = None
    seed: int | None = None
    facts: dict = field(default_factory=dict)
    """What was measured of it, such as the SNR per layer. JSON-like."""


@dataclass(frozen=True)
class ShardRow:
    """One shard: the vectors of one unit and one source at some hookpoints."""

    unit: str
    source: str
    """Digest of the source."""
    split: str
    corpus: str
    hookpoints: tuple[str, ...]
    """Ascending by layer."""
    file: str
    """Below the harvest's folder, so that the folder may be moved."""
    sha256: str
    rows: int
    bytes: int
    d_model: int

    @property
    def identity(self) -> tuple[str, str, tuple[str, ...]]:
        """What the manifest is sorted by, and lists once."""
        return self.unit, self.source, self.hookpoints

    def to_json(self) -> dict:
        return {**vars(self), "hookpoints": list(self.hookpoints)}

    @classmethod
    def from_json(cls, value: object) -> "ShardRow":
        """Inverse of `to_json`. Raises ValueError where `value` is anything else."""
        wanted = {f.name: f.type for f in fields(cls)}
        if not isinstance(value, dict) or set(value) != set(wanted) or not isinstance(value["hookpoints"], list):
            raise ValueError("it does not have the fields of a shard")
        row = cls(**{**value, "hookpoints": tuple(value["hookpoints"])})
        if any(not isinstance(getattr(row, name), kind) for name, kind in wanted.items() if isinstance(kind, type)):
            raise ValueError("a field is of the wrong type")
        return row


def hookpoints_digest(hookpoints: Iterable[Hookpoint]) -> str:
    """8 hex digits that tell apart the files of one unit and source."""
    return digest([str(h) for h in sorted(hookpoints)])[:8]


def write_harvest(storage: Storage, key: str, spec: dict) -> None:
    """Writes harvest.json once.

    Raises:
        ShardError: the key already holds another spec; keys must be made of all that a spec holds.
    """
    assert isinstance(spec.get("d_model"), int), "the spec of a harvest names d_model"
    name = f"{key}/harvest.json"
    if not storage.exists(name):
        storage.write_json(name, spec)
        return
    found, wanted = read_record(storage, name), json.loads(json.dumps(spec))
    if differing := sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k)):
        raise ShardError(f"{storage.path(name)} is of another harvest (it differs in {differing}): choose another storage.root")


def write_units(storage: Storage, key: str, units: Iterable[Unit]) -> None:
    """Writes what a complete harvest of this study holds, in this order; a study with more tokens replaces it."""
    storage.write_json(f"{key}/units.json", [vars(u) for u in units])


def writers_file(key: str, source: str) -> str:
    """Safetensors of B of each of an adapter's modules by hookpoint, fp32 [out, rank]; sha256 and ranks are among the source's facts."""
    return f"{key}/sources/{source}/writers.safetensors"


def read_units(storage: Storage, key: str) -> tuple[Unit, ...]:
    name = f"{key}/units.json"
    try:
        return tuple(Unit(**u) for u in read_record(storage, name))
    except TypeError as e:
        raise ShardError(f"{storage.path(name)} is no list of units ({e}): delete it and run the harvest again; no shard is redone") from e


def write_source(storage: Storage, key: str, source: Source) -> None:
    """Writes or replaces source.json, atomically; facts are added by writing the source again."""
    assert (source.digest == BASE) == (source.kind == "base") == (source.name == BASE), "base is one source's name, kind and digest"
    storage.write_json(f"{key}/sources/{source.digest}/source.json", vars(source))


def read_sources(storage: Storage, key: str) -> tuple[Source, ...]:
    """Base first, then adapters, then random ones; within a kind by rank, seed and name."""
    found = []
    for name in storage.folders(f"{key}/sources"):
        file = f"{key}/sources/{name}/source.json"
        if not storage.exists(file):
            continue
        try:
            found.append(Source(**read_record(storage, file)))
        except TypeError as e:
            raise ShardError(f"{storage.path(file)} is no source ({e}): delete it and run the harvest again; no shard is redone") from e
    kinds = {"base": 0, "adapter": 1, "random": 2}
    return tuple(sorted(found, key=lambda s: (kinds.get(s.kind, 3), s.rank or 0, s.seed or 0, s.name, s.digest)))


def read_record(storage: Storage, name: str):  # noqa: ANN201  JSON of any shape
    """A JSON file of the harvest.

    Raises:
        ShardError: it is missing or is not JSON; names the file.
    """
    try:
        return json.loads(storage.read_bytes(name))
    except StorageError as e:
        raise ShardError(f"{e}. Run the harvest again: it is written first, and no shard is redone") from e
    except ValueError as e:  # half a JSON document, or bytes that are no text
        raise ShardError(f"{storage.path(name)} is not valid JSON ({e}): delete it and run the harvest again; no shard is redone") from e
