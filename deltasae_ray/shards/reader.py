"""Reads one hookpoint of one source as one array. Only that column's bytes leave the disk."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load

from deltasae_ray.batches import SPLITS
from deltasae_ray.errors import ConfigError, HookpointError, ShardError, StorageError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.columns import to_rows
from deltasae_ray.shards.format import exponent_column, vectors_from
from deltasae_ray.shards.integrity import THREADS, find_damage, opened
from deltasae_ray.shards.manifest import REDO, Manifest
from deltasae_ray.shards.records import ShardRow, Source, Unit, writers_file
from deltasae_ray.shards.tokens import TokenTable, read_tokens
from deltasae_ray.storage import Storage

_SHOWN = 5  # units or files that an error spells out


@dataclass(frozen=True)
class ShardSet:
    """The shards of one study, as they were when it was opened. Rows stand in the same order for every
    source: units by name."""

    storage: Storage
    key: str
    """The harvest's folder below the storage root."""
    spec: dict
    """harvest.json."""
    all_units: tuple[Unit, ...]
    """What a complete harvest of this study holds, by name."""
    sources: tuple[Source, ...]
    """Base, adapters, random adapters."""
    manifest: Manifest

    @property
    def d_model(self) -> int:
        return self.spec["d_model"]

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of every source but the base; `source(name).kind` tells controls apart."""
        return tuple(s.name for s in self.sources if s.kind != "base")

    @cached_property
    def hookpoints(self) -> tuple[str, ...]:
        """Names of those of the residual stream, ascending by layer."""
        return self._held([s.digest for s in self.sources], lora=False)

    def lora_hookpoints(self, adapter: str) -> tuple[str, ...]:
        """Names of those where an adapter's modules were harvested (`harvest.sites=[resid_post,lora]`),
        ascending by layer."""
        return self._held([self.source(adapter).digest], lora=True)

    def _held(self, sources: Sequence[str], *, lora: bool) -> tuple[str, ...]:
        """Hookpoints at which any unit of the study was harvested for any of these sources."""
        groups = self.manifest.select(sources, self._names)["hookpoints"].unique().to_pylist()
        held = {Hookpoint.parse(h) for names in groups for h in names.split(",")}
        return tuple(str(h) for h in sorted(held) if (h.site == "lora") == lora)

    @cached_property
    def _names(self) -> list[str]:
        return [u.name for u in self.all_units]

    def _rows(self, source: str, units: Sequence[Unit]) -> dict[str, list[ShardRow]]:
        """Shards of one source (by digest), by unit."""
        rows = defaultdict(list)
        for row in to_rows(self.manifest.select([source], [u.name for u in units])):
            rows[row.unit].append(row)
        return rows

    def source(self, name: str) -> Source:
        """The source of a name, or of a digest.

        Raises:
            ShardError: there is none, or more than one adapter of that name was harvested.
        """
        matching = [s for s in self.sources if name in (s.name, s.digest)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ShardError(
                f"{name!r} names {len(matching)} sources of {self.key}: ask for one by its digest,"
                f" {[s.digest for s in matching]}"
            )
        raise ShardError(f"{self.key} has no source {name!r}: there are {[s.name for s in self.sources]}")

    def units(self, split: str | None = None) -> tuple[Unit, ...]:
        """Units of a split, or all, in the order of the rows.

        Raises:
            ConfigError: no such split.
        """
        if split is not None and split not in SPLITS:
            raise ConfigError(f"split={split!r} is none of {list(SPLITS)}")
        return tuple(u for u in self.all_units if split in (None, u.split))

    def read(
        self,
        hookpoint: int | str | Hookpoint,
        adapter: str = BASE,
        split: str | None = None,
        *,
        verify: bool = False,
    ) -> Float32[np.ndarray, "token width"]:
        """Deltas of an adapter, or the base model's activations, at one hookpoint [token, d_model]; at
        `blocks.<layer>.<module>.hook_lora` the module's own change in low-rank coordinates, s·A·u [token,
        rank], which `writer` takes to the module's output. `verify` also checks every file's sha256.

        Raises:
            HookpointError: it was not harvested.
            ShardError: an unknown adapter, units that are not harvested yet, or a damaged file; other columns
                stay readable.
        """
        hook, source = Hookpoint.parse(hookpoint), self.source(adapter)
        width = self.d_model if hook.site != "lora" else self._rank(hook, source)
        if str(hook) not in self.hookpoints and hook.site != "lora":
            raise HookpointError(f"{hook} was not harvested: there are {list(self.hookpoints)}")
        rows = self._complete(hook, source, self.units(split))
        starts = np.cumsum([0, *(row.rows for row in rows)])
        try:
            out = np.empty((starts[-1], width), np.float32)
        except (MemoryError, ValueError) as e:  # more than there is, or than an array can have
            raise ShardError(
                f"{self.storage.path(self.key)} has {starts[-1]} x {width} numbers of {source.name!r} at"
                f" {hook} by its records, which this machine cannot hold: read one split, or take a larger"
                " machine; if that is no true number, run the harvest again"
            ) from e

        def fill(index: int) -> None:
            with opened(self.storage, self.key, rows[index], verify=verify) as shard:
                table = shard.read([str(hook), exponent_column(hook)], use_threads=False)
                vectors_from(table, hook, out[starts[index] : starts[index + 1]])

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(fill, range(len(rows))):
                pass
        return out

    def writer(self, hookpoint: str | Hookpoint, adapter: str) -> Float32[np.ndarray, "out rank"]:
        """Reads B of a module that an adapter adapts.

        The change that it makes to the module's output is `read(hookpoint, adapter) @ B.T`.

        Raises:
            HookpointError: nothing of this module was harvested.
            ShardError: a file that is missing or damaged.
        """
        hook, source = Hookpoint.parse(hookpoint), self.source(adapter)
        self._rank(hook, source)
        name = writers_file(self.key, source.digest)
        try:
            data = self.storage.read_bytes(name)
            if hashlib.sha256(data).hexdigest() != source.facts.get("lora", {}).get("sha256"):
                raise ShardError(
                    f"{self.storage.path(name)} was altered: delete it and run the harvest again; no shard is"
                    " redone"
                )
        except StorageError as e:
            raise ShardError(f"{e}. Run the harvest again: no shard is redone") from e
        try:
            return load(data)[str(hook)]
        except (SafetensorError, KeyError, ValueError, TypeError) as e:
            raise ShardError(
                f"{self.storage.path(name)} holds nothing of {hook} ({e}): delete it and run the harvest"
                " again"
            ) from e

    def _rank(self, hook: Hookpoint, source: Source) -> int:
        there, ranks = self.lora_hookpoints(source.digest), source.facts.get("lora", {}).get("ranks", {})
        if str(hook) not in there or str(hook) not in ranks:
            raise HookpointError(
                f"{hook} of {source.name!r} was not harvested, but {list(there)}:"
                " harvest.sites=[resid_post,lora] writes what modules of plain LoRA adapters change at the"
                " layers studied"
            )
        return ranks[str(hook)]

    def _complete(self, hook: Hookpoint, source: Source, units: Sequence[Unit]) -> list[ShardRow]:
        """One row per unit that holds the hookpoint, checked against the unit's tokens."""
        rows, missing = [], []
        held = self._rows(source.digest, units)
        for unit in units:
            row = next((r for r in held.get(unit.name, ()) if str(hook) in r.hookpoints), None)
            if row is None:
                missing.append(unit.name)
            elif row.rows != unit.tokens or row.d_model != self.d_model and hook.site != "lora":
                raise ShardError(
                    f"{self.storage.path(f'{self.key}/{row.file}')} has {row.rows} x {row.d_model} numbers by"
                    f" the manifest, {unit.tokens} x {self.d_model} by units.json and harvest.json: {REDO}"
                )
            else:
                rows.append(row)
        if missing:
            raise ShardError(
                f"{self.storage.path(self.key)} is incomplete: {source.name!r} lacks {len(missing)} of"
                f" {len(units)} units at {hook} ({_some(missing)}). Run the harvest again: only these are"
                f" redone{_also(self.manifest.damaged)}"
            )
        return rows

    def tokens(self, split: str | None = None) -> TokenTable:
        """The rows' tokens, from the first source that holds each unit.

        Raises:
            ShardError: a unit that no source holds yet, or a damaged file.
        """
        units = self.units(split)
        held: dict[str, ShardRow] = {}
        for source in self.sources:
            left = [u for u in units if u.name not in held]
            held |= {name: rows[0] for name, rows in self._rows(source.digest, left).items()}
        if missing := [u.name for u in units if u.name not in held]:
            raise ShardError(
                f"{self.storage.path(self.key)} is incomplete: {len(missing)} of {len(units)} units are not"
                f" harvested ({_some(missing)}). Run the harvest again: only these are"
                f" redone{_also(self.manifest.damaged)}"
            )

        return read_tokens(self.storage, self.key, [held[u.name] for u in units])

    def verify(self, *, hashes: bool = True) -> None:
        """Checks every shard of the study, by size alone or by reading every byte.

        Raises:
            ShardError: names the damaged files and records.
        """
        problems, count = list(self.manifest.damaged), 0
        for source in self.sources:  # a source at a time: rows as objects are large
            rows = to_rows(self.manifest.select([source.digest], self._names))
            count += len(rows)
            problems += find_damage(self.storage, self.key, rows, hashes=hashes).values()
        if problems:
            raise ShardError(
                f"{len(problems)} of {count} shards or records are damaged: {_some(problems, '; ')}"
            )


def _some(items: Sequence[str], separator: str = ", ") -> str:
    return separator.join(items[:_SHOWN]) + (
        f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    )


def _also(damaged: Sequence[str]) -> str:
    return f". Damaged records: {_some(damaged, '; ')}" if damaged else ""
