"""What is written down beside the vectors: the harvest's spec, its units, its sources, and one row per
shard."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ShardError, StorageError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.paths import inside
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage, digest


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
    """Of the adapter's files or recipe; "base" for the base model, whose identity is part of the harvest's
    key."""
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
        """What a manifest lists once."""
        return self.unit, self.source, self.hookpoints

    def to_json(self) -> dict:
        return {**vars(self), "hookpoints": list(self.hookpoints)}

    @classmethod
    def from_json(cls, value: object) -> "ShardRow":
        """Inverse of `to_json`. Raises ValueError where `value` is anything else."""
        if (
            not isinstance(value, dict)
            or set(value) != {f.name for f in fields(cls)}
            or not isinstance(value["hookpoints"], list)
        ):
            raise ValueError("it does not have the fields of a shard")
        _check_fields(cls, value, "a shard")
        if not value["hookpoints"] or not all(isinstance(h, str) for h in value["hookpoints"]):
            raise ValueError(f"hookpoints={value['hookpoints']!r} are no names of hookpoints")
        if not re.fullmatch("[0-9a-f]{64}", value["sha256"]):
            raise ValueError(f"sha256={value['sha256'][:80]!r} is no sha256")
        row = cls(**{**value, "hookpoints": tuple(value["hookpoints"])})
        # the only file that a row may lead to: one that named another would make a repair delete that one
        if row.file != (own := shard_file(row.unit, row.source, row.hookpoints)):
            raise ValueError(
                f"file={row.file!r} is not the file of this unit, source and hookpoints, {own!r}"
            )
        return row


_MOST = 2**53
"""No count in a record is larger; JSON may hold numbers of a thousand digits."""


def _check_fields(cls: type, value: dict[str, Any], what: str) -> None:
    """Raises ValueError where a field is of the wrong type, a count is negative, or a name would lead to
    another folder."""
    for f in fields(cls):
        given = value.get(f.name)
        right = {str: _is_text, int: _is_count}.get(f.type, lambda _: True)(given)
        if not right or f.name in ("unit", "source", "digest") and not _is_file_name(given):
            raise ValueError(f"{f.name}={str(given)[:80]!r} cannot be that of {what}")


def _is_text(value: Any) -> bool:
    with suppress(
        UnicodeEncodeError
    ):  # JSON may hold halves of surrogate pairs, which no file and no page can
        return isinstance(value, str) and value.encode() is not None
    return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_file_name(value: Any) -> bool:
    with suppress(StorageError):
        return "/" not in value and bool(inside("", value))
    return False


def shard_file(unit: str, source: str, hookpoints: tuple[str, ...]) -> str:
    """Where the shard of a unit and source (by digest) lies, below the harvest's folder. The file is named by
    its hookpoints too.

    Raises:
        ValueError: a name is no hookpoint's, or they are not in order.
    """
    return f"sources/{source}/{unit}-{_hookpoints_digest(hookpoints)}.parquet"


@lru_cache(maxsize=1024)
def _hookpoints_digest(names: tuple[str, ...]) -> str:
    if tuple(str(h) for h in sorted(Hookpoint.parse(name) for name in names)) != names:
        raise ValueError(f"{list(names)} are not the names of hookpoints in their order")
    return digest(list(names))[:8]


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
    stored, wanted = read_spec(storage, key), json.loads(json.dumps(spec))
    if differing := sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k)):
        raise ShardError(
            f"{storage.path(name)} is of another harvest (it differs in {differing}): choose another"
            " storage.root"
        )


def write_units(storage: Storage, key: str, units: Iterable[Unit]) -> None:
    """Writes what a complete harvest of this study holds, in this order; a study with more tokens replaces
    it."""
    storage.write_json(f"{key}/units.json", [vars(u) for u in units])


def writers_file(key: str, source: str) -> str:
    """Safetensors of B of each of an adapter's modules by hookpoint, fp32 [out, rank]; sha256 and ranks are
    among the source's facts."""
    return f"{key}/sources/{source}/writers.safetensors"


def read_spec(storage: Storage, key: str) -> dict[str, Any]:
    """What harvest.json says of the whole harvest.

    Raises:
        ShardError: it is missing or damaged.
    """
    name = f"{key}/harvest.json"
    spec = read_record(storage, name)
    width = spec.get("d_model") if isinstance(spec, dict) else None
    if type(width) is not int or not 0 < width < 2**24:
        raise ShardError(
            f"{storage.path(name)} names no d_model: delete it and run the harvest again; no shard is redone"
        )
    return spec


def read_units(storage: Storage, key: str) -> tuple[Unit, ...]:
    """What a complete harvest holds.

    Raises:
        ShardError: units.json is missing or damaged.
    """
    name = f"{key}/units.json"
    try:
        units = tuple(Unit(**u) for u in read_record(storage, name))
        for unit in units:
            _check_fields(Unit, vars(unit), "a unit")
        return units
    except (TypeError, ValueError) as e:
        raise ShardError(
            f"{storage.path(name)} is no list of units ({e}): delete it and run the harvest again; no shard"
            " is redone"
        ) from e


def write_source(storage: Storage, key: str, source: Source) -> None:
    """Writes or replaces source.json, atomically; facts are added by writing the source again."""
    assert (source.digest == BASE) == (source.kind == "base") == (source.name == BASE), (
        "base is one source's name, kind and digest"
    )
    storage.write_json(f"{key}/sources/{source.digest}/source.json", vars(source))


def read_sources(storage: Storage, key: str) -> tuple[Source, ...]:
    """Base first, then adapters, then random ones; within a kind by rank, seed and name."""
    sources = []
    for name in storage.folders(f"{key}/sources"):
        file = f"{key}/sources/{name}/source.json"
        if not storage.exists(file):
            continue
        try:
            sources.append(_source(read_record(storage, file), name))
        except (TypeError, ValueError) as e:
            raise ShardError(
                f"{storage.path(file)} is no source ({e}): delete it and run the harvest again; no shard is"
                " redone"
            ) from e
    return tuple(
        sorted(sources, key=lambda s: (_KINDS.index(s.kind), s.rank or 0, s.seed or 0, s.name, s.digest))
    )


_KINDS = ("base", "adapter", "random")


def _source(value: Any, folder: str) -> Source:
    """Raises TypeError or ValueError where `value` is not the source whose folder this is."""
    source = Source(**value)
    _check_fields(Source, vars(source), "a source")
    if source.kind not in _KINDS or source.digest != folder:
        raise ValueError(
            f"kind {source.kind!r} and digest {source.digest!r} are not those of a source in the folder"
            f" {folder}"
        )
    for name, number in {"rank": source.rank, "seed": source.seed}.items():
        if number is not None and type(number) is not int:
            raise ValueError(f"{name}={number!r} is no integer")
    facts = source.facts.get("lora", {"sha256": "", "ranks": {}}) if isinstance(source.facts, dict) else {}
    ranks = facts.get("ranks") if isinstance(facts, dict) and isinstance(facts.get("sha256"), str) else None
    if not isinstance(ranks, dict) or not all(
        type(rank) is int and 0 < rank < 2**24 for rank in ranks.values()
    ):
        raise ValueError("its facts are damaged")
    return source


def read_record(storage: Storage, name: str):  # noqa: ANN201  JSON of any shape
    """A JSON file of the harvest.

    Raises:
        ShardError: it is missing or is not JSON; names the file.
    """
    try:
        return json.loads(storage.read_bytes(name))
    except StorageError as e:
        raise ShardError(f"{e}. Run the harvest again: it is written first, and no shard is redone") from e
    except (
        ValueError,
        RecursionError,
    ) as e:  # half a JSON document, bytes that are no text, a thousand brackets
        raise ShardError(
            f"{storage.path(name)} is not valid JSON ({e}): delete it and run the harvest again; no shard is"
            " redone"
        ) from e
