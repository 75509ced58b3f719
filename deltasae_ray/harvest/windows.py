"""The windows of a stream, harvested one after the other by one run of gangs: their models are loaded
once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.errors import ResourceError
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.harvest.run import Harvest, Missing, check_complete
from deltasae_ray.harvest.worker import HarvestPlan, HarvestWorker
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.progress import Bar
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest, is_committed
from deltasae_ray.shards.records import (
    Unit,
    read_record,
    read_sources,
    write_harvest,
    write_source,
    write_units,
)
from deltasae_ray.shards.spool import wait_until_open, window_key
from deltasae_ray.storage import Storage


def harvest_windows(
    context: StageContext, cfg: HarvestConfig, kept: Harvest, spool: str, windows: Mapping[int, Corpus]
) -> Iterator[int]:
    """Writes what is missing of `windows` below `spool`, in their order, and yields each one as soon as it is
    complete.

    A window is begun only when the stream's board has opened it. Adapters, noise floor and random adapter are
    those of `kept`.

    Raises:
        DeltaSaeError: what a worker raised on purpose; ResourceError where the stream was stopped meanwhile;
            StorageError where gangs have told of units that are not here.
    """
    if not windows:
        return
    storage = context.storage
    wanted = dict.fromkeys([BASE, *(a.digest for a in kept.adapters)], kept.hookpoints)
    missing: dict[int, Missing] = {}
    for index, corpus in windows.items():
        repair(storage, key := window_key(spool, index))
        missing[index] = Manifest.load(storage, key).missing([u.name for u in corpus.units], wanted)
    left = {index: len(units) for index, units in missing.items()}
    yield from _complete(storage, kept, spool, windows, left)
    digest = read_record(storage, f"{kept.key}/harvest.json")["model_digest"]
    plan = HarvestPlan(
        storage, kept.key, context.model, kept.adapters, kept.hookpoints, cfg.precision, digest
    )
    tokens = sum(
        u.num_tokens for index, corpus in windows.items() for u in corpus.units if u.name in missing[index]
    )
    with Bar(tokens, f"harvest ({len(windows)} windows)", "tokens") as bar:
        work, factory = WindowsLeft(spool, windows, missing), WindowFactory(plan, spool)
        for _, done in run_units(work, factory, context.gangs, part=_window, parts=max(1, len(left))):
            bar.update(done["tokens"])
            left[done["window"]] -= 1
            yield from _complete(storage, kept, spool, windows, left)


def _window(todo: dict[str, Any]) -> int:
    return todo["window"]


def _complete(
    storage: Storage, kept: Harvest, spool: str, windows: Mapping[int, Corpus], left: dict[int, int]
) -> Iterator[int]:
    """Takes the leading windows that lack nothing out of `left`, and makes each a harvest that can be
    opened."""
    while left and not left[first := next(iter(left))]:
        del left[first]
        key, corpus = window_key(spool, first), windows[first]
        write_harvest(
            storage, key, {**read_record(storage, f"{kept.key}/harvest.json"), "corpus": corpus.key}
        )
        write_units(storage, key, map(Unit.of, corpus.units))
        wanted = dict.fromkeys([BASE, *(a.digest for a in kept.adapters)], kept.hookpoints)
        for source in read_sources(storage, kept.key):
            if source.digest in wanted:
                write_source(storage, key, source)
        manifest = Manifest.compact(storage, key)
        check_complete(storage, key, manifest.missing([u.name for u in corpus.units], wanted))
        yield first


@dataclass(frozen=True)
class WindowsLeft:
    """The units that lack something, window by window; each knows its window and what it lacks by source."""

    spool: str
    windows: Mapping[int, Corpus]
    missing: Mapping[int, Missing]

    def __len__(self) -> int:
        return sum(map(len, self.missing.values()))

    def __iter__(self) -> Iterator[tuple[TokenBatch, dict[str, Any]]]:
        for index, corpus in self.windows.items():
            for unit in corpus.units:
                if todo := self.missing[index].get(unit.name):
                    yield (
                        unit,
                        {
                            "window": index,
                            "missing": {source: _names(hooks) for source, hooks in todo.items()},
                        },
                    )


def _names(hookpoints: Sequence[Hookpoint]) -> list[str]:
    return [str(h) for h in hookpoints]


class WindowWorker:
    """Callable of (unit, todo): a HarvestWorker that waits until the unit's window is open, so that disk
    stays bounded."""

    def __init__(self, plan: HarvestPlan, spool: str, context: RankContext) -> None:
        self._storage, self._spool = plan.storage, spool
        self._worker = HarvestWorker(plan, context)

    def __call__(self, unit: TokenBatch, todo: dict[str, Any], *, keep: bool) -> dict[str, int]:
        """Writes and commits the unit's shards; its window and its tokens."""
        if not wait_until_open(self._storage, self._spool, todo["window"]):
            raise ResourceError(
                f"window {todo['window'] + 1} of the stream was not harvested: the fit has ended, or its"
                " driver is gone"
            )
        tokens = self._worker.write(unit, todo["missing"], window_key(self._spool, todo["window"]), keep=keep)
        return {"window": todo["window"], "tokens": tokens}


@dataclass(frozen=True)
class WindowFactory:
    """Picklable maker of a rank's worker; knows which units a lost gang has committed."""

    plan: HarvestPlan
    spool: str

    def done(self, unit: TokenBatch, todo: dict[str, Any]) -> dict[str, int] | None:
        """The unit's window and tokens, if its shards count already."""
        if not is_committed(
            self.plan.storage, window_key(self.spool, todo["window"]), unit.name, todo["missing"]
        ):
            return None
        return {"window": todo["window"], "tokens": unit.num_tokens}

    def __call__(self, context: RankContext) -> WindowWorker:
        return WindowWorker(self.plan, self.spool, context)
