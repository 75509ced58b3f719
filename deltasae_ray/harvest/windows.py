"""The windows of a stream, harvested one after the other by one run of gangs: their models are loaded
once."""

from collections.abc import Iterator, Mapping

from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.harvest.run import Harvest, Left, Missing, check_complete, run_left
from deltasae_ray.harvest.worker import HarvestPlan
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.records import (
    Unit,
    read_record,
    read_sources,
    write_harvest,
    write_source,
    write_units,
)
from deltasae_ray.shards.spool import window_key
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
        storage, kept.key, context.model, kept.adapters, kept.hookpoints, cfg.precision, digest, spool=spool
    )
    lacking = Left({index: windows[index] for index in left}, {index: missing[index] for index in left})
    for window in run_left(lacking, plan, context.gangs, f"harvest ({len(windows)} windows)"):
        left[window] -= 1
        yield from _complete(storage, kept, spool, windows, left)


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
