"""The harvest of a study: what is missing is found, planned, run by gangs and listed in the manifest."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.errors import StorageError
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.harvest.key import harvest_key, harvest_record
from deltasae_ray.harvest.sources import prepare_sources
from deltasae_ray.harvest.worker import HarvestFactory, HarvestPlan, Todo
from deltasae_ray.harvest.writers import keep_writers
from deltasae_ray.hookpoints import Hookpoint, at_sites
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.source import ModelSource
from deltasae_ray.progress import Bar
from deltasae_ray.runtime.config import GangConfig, check_sharding
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.records import Unit, write_harvest, write_units
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)

Missing = dict[str, dict[str, tuple[Hookpoint, ...]]]
"""Unit → source digest → hookpoints that are not written yet."""


@dataclass(frozen=True)
class Harvest:
    """What a finished harvest holds."""

    key: str
    adapters: tuple[AdapterRef, ...]
    """The study's adapters, then the random ones, if any."""
    hookpoints: tuple[Hookpoint, ...]
    """Of the residual stream."""


def harvest(
    context: StageContext,
    model: ModelSource,
    cfg: HarvestConfig,
    adapters: Sequence[AdapterRef],
    hookpoints: tuple[Hookpoint, ...],
    *,
    random_lora: bool = True,
) -> Harvest:
    """Writes every shard that is missing; a finished harvest returns in seconds.

    Args:
        random_lora: also harvest random adapters (same modules, Haar-rotated singular vectors, matched
            norm) as a control: one of each rank, and two where there is one rank.

    Raises:
        ConfigError: ranks and sharding contradict each other.
        AdapterError: an adapter whose deltas are zero at every hookpoint.
        PrecisionError: deltas too close to their noise floor.
        StorageError: gangs have told of units that are not here, as where they write to disks of their own.
    """
    storage, corpus = context.storage, context.corpus
    check_sharding(context.gangs, context.model)
    key = harvest_key(corpus, model, cfg.precision)
    hookpoints = at_sites(hookpoints, cfg.sites)
    write_harvest(storage, key, harvest_record(model, corpus, cfg))
    write_units(storage, key, map(Unit.of, corpus.units))
    everyone = prepare_sources(context, key, cfg, adapters, hookpoints, random_lora=random_lora)
    repair(storage, key)
    units, wanted = (
        [u.name for u in corpus.units],
        dict.fromkeys([BASE, *(a.digest for a in everyone)], hookpoints),
    )
    if "lora" in cfg.sites:
        layers, empty = (
            {h.layer for h in hookpoints},
            empty_model(model.folder, trust_remote_code=context.model.trust_remote_code),
        )
        for ref in everyone:
            wanted[ref.digest] += tuple(
                h for h in keep_writers(storage, key, ref, empty) if h.layer in layers
            )
            if wanted[ref.digest] == hookpoints:
                log.warning(
                    "adapter %s adapts no linear module at layers %s by plain LoRA: no lora site of it",
                    ref.name,
                    sorted(layers),
                )
    if missing := Manifest.load(storage, key).missing(units, wanted):
        _run(context, key, cfg, everyone, missing)
    check_complete(storage, key, Manifest.compact(storage, key).missing(units, wanted))
    return Harvest(key, tuple(everyone), hookpoints)


def check_complete(storage: Storage, key: str, missing: Missing) -> None:
    """Raises StorageError where a harvest that has run lacks something."""
    if missing:
        raise StorageError(
            f"the harvest has run, but {storage.path(key)} lacks {len(missing)} of its units,"
            f" {next(iter(missing))} first: can all nodes write to storage.root, and is it one place for all"
            " of them? Otherwise run the same command again"
        )


def _run(
    context: StageContext, key: str, cfg: HarvestConfig, adapters: Sequence[AdapterRef], missing: Missing
) -> None:
    digests = {d for todo in missing.values() for d in todo}
    stream = {h for todo in missing.values() for hooks in todo.values() for h in hooks if h.site != "lora"}
    left = tuple(a for a in adapters if a.digest in digests)
    lora = {
        a.name: tuple(
            sorted({h for todo in missing.values() for h in todo.get(a.digest, ()) if h.site == "lora"})
        )
        for a in left
    }
    plan = HarvestPlan(
        context.storage,
        key,
        context.model,
        left,
        tuple(sorted(stream)),
        cfg.precision,
        context.model_digest,
        lora,
    )
    for _ in run_left(Left({0: context.corpus}, {0: missing}), plan, context.gangs, "harvest"):
        pass


@dataclass(frozen=True)
class Left:
    """The units that lack something, window by window; each knows its window and what it lacks by source."""

    windows: Mapping[int, Corpus]
    missing: Mapping[int, Missing]

    def __len__(self) -> int:
        return sum(map(len, self.missing.values()))

    def __iter__(self) -> Iterator[tuple[TokenBatch, Todo]]:
        for window, unit in self._units():
            todo = self.missing[window][unit.name]
            lacks = {source: [str(h) for h in hookpoints] for source, hookpoints in todo.items()}
            yield unit, {"window": window, "missing": lacks}

    @property
    def tokens(self) -> int:
        return sum(unit.num_tokens for _, unit in self._units())

    def _units(self) -> Iterator[tuple[int, TokenBatch]]:
        for window, corpus in self.windows.items():
            yield from ((window, unit) for unit in corpus.units if self.missing[window].get(unit.name))


def run_left(left: Left, plan: HarvestPlan, gangs: GangConfig, bar: str) -> Iterator[int]:
    """Has gangs write what is left; yields the window of each unit that is done.

    The windows of a stream come in their order: a unit may wait for what is made of the windows before.
    """
    part = (lambda todo: todo["window"]) if plan.spool else None
    with Bar(left.tokens, bar, "tokens") as progress:
        for _, done in run_units(left, HarvestFactory(plan), gangs, part=part, parts=len(left.windows)):
            progress.update(done["tokens"])
            yield done["window"]
