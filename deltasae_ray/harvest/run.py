"""The harvest of a study: what is missing is found, planned, run by gangs and listed in the manifest."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.errors import AdapterError, PrecisionError, StorageError
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.harvest.prepare import (
    PrepareFactory,
    finish_random,
    random_key,
    sample,
    stored_random,
    write_rotated,
)
from deltasae_ray.harvest.worker import HarvestFactory, HarvestPlan
from deltasae_ray.harvest.writers import keep_writers
from deltasae_ray.hookpoints import Hookpoint, at_sites
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.capture import BASE
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.source import ModelSource
from deltasae_ray.progress import Bar
from deltasae_ray.runtime.config import GangConfig, check_sharding
from deltasae_ray.runtime.units import run_units
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.records import Source, Unit, read_sources, write_harvest, write_source, write_units
from deltasae_ray.storage import Storage, digest

log = logging.getLogger(__name__)

_ON_DISK = "float16 with a per-row power-of-two exponent on disk"
NUMERICS = {
    "fp32": f"fp32 weights, residual stream and subtraction; {_ON_DISK}",
    "mixed": (
        f"bf16 products by difference propagation, fp32 weights, residual stream and subtraction; {_ON_DISK}"
    ),
}
"""What enters a harvest's key, by `harvest.precision`; `numerics` says how weights are held."""
WARN_SNR = 100.0
RANDOM_SEED = 0
"""Of the random adapter: the same for all studies, so that nobody draws until a control pleases."""
Missing = dict[str, dict[str, tuple[Hookpoint, ...]]]
"""Unit → source digest → hookpoints that are not written yet."""


@dataclass(frozen=True)
class Harvest:
    """What a finished harvest holds."""

    key: str
    adapters: tuple[AdapterRef, ...]
    """The study's adapters, then the random one, if any."""
    hookpoints: tuple[Hookpoint, ...]
    """Of the residual stream."""


def numerics(precision: str, model: ModelSource) -> str:
    """How numbers come about, in words."""
    return NUMERICS[precision].replace(
        "fp32 weights,", "fp32 weights," if model.weights == "fp32" else "bf16 weights, fp32"
    )


def harvest_key(corpus: Corpus, model: ModelSource, precision: str = "fp32") -> str:
    """Of the tokens, the model and the numerics; adapters and hookpoints are sources and columns within."""
    made_of = {"corpus": corpus.key, "model": model.digest, "numerics": numerics(precision, model)}
    return f"harvest/{digest(made_of)}"


def harvest(
    storage: Storage,
    cfg: HarvestConfig,
    gangs: GangConfig,
    model_cfg: ModelConfig,
    model: ModelSource,
    corpus: Corpus,
    adapters: Sequence[AdapterRef],
    hookpoints: tuple[Hookpoint, ...],
    *,
    random_lora: bool = True,
) -> Harvest:
    """Writes every shard that is missing; a finished harvest returns in seconds.

    Args:
        random_lora: also harvest one random adapter (same modules, Haar-rotated singular vectors, matched
            norm) as a control.

    Raises:
        ConfigError: ranks and sharding contradict each other.
        AdapterError: an adapter whose deltas are zero at every hookpoint.
        PrecisionError: deltas too close to their noise floor.
        StorageError: gangs have told of units that are not here, as where they write to disks of their own.
    """
    check_sharding(gangs, model_cfg)
    key = harvest_key(corpus, model, cfg.precision)
    hookpoints = at_sites(hookpoints, cfg.sites)
    write_harvest(storage, key, _spec(model, corpus, cfg))
    write_units(storage, key, map(Unit.of, corpus.units))
    test = sample(corpus.of("fit"), cfg.noise_contexts)
    everyone = _prepare(
        storage, key, cfg, gangs, model_cfg, model.digest, adapters, hookpoints, test, random_lora=random_lora
    )
    repair(storage, key)
    units, wanted = (
        [u.name for u in corpus.units],
        dict.fromkeys([BASE, *(a.digest for a in everyone)], hookpoints),
    )
    if "lora" in cfg.sites:
        layers, empty = (
            {h.layer for h in hookpoints},
            empty_model(model.folder, trust_remote_code=model_cfg.trust_remote_code),
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
        _run(storage, key, cfg, gangs, model_cfg, model.digest, corpus, everyone, missing)
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


def _spec(model: ModelSource, corpus: Corpus, cfg: HarvestConfig) -> dict:
    tokens = {
        split: {name: corpus.num_tokens(split, name) for name in corpus.names} for split in ("fit", "eval")
    }
    return {
        "d_model": model.d_model,
        "model": model.label,
        "model_digest": model.digest,
        "num_layers": model.num_layers,
        "numerics": numerics(cfg.precision, model),
        "corpus": corpus.key,
        "tokens": tokens,
    }


def _sources(storage: Storage, key: str, adapters: Sequence[AdapterRef]) -> dict[str, Source]:
    """Puts base and adapters on record; what is on record of them, by name."""
    wanted = [Source(BASE, "base", BASE)]
    wanted += [
        Source(a.name, a.kind, a.digest, rank=a.rank, alpha=a.alpha, seed=a.seed, facts={"training": a.facts})
        for a in adapters
    ]
    known = {s.digest: s for s in read_sources(storage, key)}
    recorded = {}
    for source in wanted:
        found = known.get(source.digest)
        recorded[source.name] = source if found is None else replace(found, name=source.name)
        if recorded[source.name] != found:
            write_source(storage, key, recorded[source.name])
    return recorded


def _prepare(
    storage: Storage,
    key: str,
    cfg: HarvestConfig,
    gangs: GangConfig,
    model: ModelConfig,
    model_digest: str,
    adapters: Sequence[AdapterRef],
    hookpoints: tuple[Hookpoint, ...],
    unit: TokenBatch,
    *,
    random_lora: bool,
) -> list[AdapterRef]:
    """Makes the random adapter and measures noise floors where they are missing, in one gang; all sources are
    then on record and judged."""
    everyone, match, into = list(adapters), None, ""
    if random_lora and adapters:
        like = rotated_from(adapters)
        into = random_key(like, RANDOM_SEED, unit, model_digest)
        if (found := stored_random(storage, like, into)) is not None:
            everyone.append(found)
        else:
            match = like, write_rotated(storage, like, f"{into}/unmatched", RANDOM_SEED)
    facts = _sources(storage, key, everyone)
    todo = [a for a in everyone if not _measured_on(unit, facts[a.name], hookpoints)]
    if todo or match:
        factory = PrepareFactory(storage, model, tuple(todo), hookpoints, cfg.precision, match, model_digest)
        ((_, measured),) = run_units([(unit, None)], factory, gangs)
        if match:
            everyone.append(
                finish_random(storage, rotated_from(adapters), into, RANDOM_SEED, measured["match"])
            )
            todo.append(everyone[-1])
            facts |= _sources(storage, key, everyone[-1:])
        for ref in todo:
            source = facts[ref.name]
            more = {
                what: {**source.facts.get(what, {}), **measured[what][ref.name]}
                for what in ("noise", "injected")
            }
            sampled = {**source.facts.get("noise_sample", {}), **dict.fromkeys(more["noise"], unit.name)}
            facts[ref.name] = replace(source, facts={**source.facts, **more, "noise_sample": sampled})
            write_source(storage, key, facts[ref.name])
    for ref in everyone:
        _judge(ref, {h: facts[ref.name].facts["noise"][str(h)] for h in hookpoints}, cfg.min_snr)
    return everyone


def rotated_from(adapters: Sequence[AdapterRef]) -> AdapterRef:
    """The adapter that the random one is made from: of the smallest rank, ties by content. It stays the same
    in whatever order adapters are given and when one of a larger rank is added."""
    return min(adapters, key=lambda a: (a.rank, a.digest))


def _measured_on(unit: TokenBatch, source: Source, hookpoints: Sequence[Hookpoint]) -> bool:
    """Whether the source's noise floor is on record at every hookpoint, and was measured on these very
    contexts."""
    sampled = source.facts.get("noise_sample", {})
    return all(
        str(h) in source.facts.get("noise", {}) and sampled.get(str(h)) == unit.name for h in hookpoints
    )


def _judge(ref: AdapterRef, noise: dict[Hookpoint, dict], min_snr: float) -> None:
    layers = [h.layer for h in noise]
    if all(floor["signal"] == 0 for floor in noise.values()):
        raise AdapterError(
            f"adapter {ref.name} changes nothing at layers {layers}: every delta is exactly 0. Its modules"
            f" may stand after layer {max(layers)}; choose deeper layers"
        )
    for hookpoint, floor in noise.items():
        snr = floor["snr"]
        if snr is not None and floor["signal"] > 0 and snr < min_snr:
            raise PrecisionError(
                f"adapter {ref.name}, {hookpoint}: signal-to-noise {snr:.3g} is below"
                f" harvest.min_snr={min_snr:g}: these deltas are mostly rounding. Leave this layer out, set"
                " harvest.precision=fp32 if it is mixed, or lower harvest.min_snr: the report says so"
            )
        if snr is not None and snr < WARN_SNR:
            log.warning(
                "adapter %s, %s: signal-to-noise is only %.3g (a sound harvest has over %g)",
                ref.name,
                hookpoint,
                snr,
                WARN_SNR,
            )


def _run(
    storage: Storage,
    key: str,
    cfg: HarvestConfig,
    gangs: GangConfig,
    model: ModelConfig,
    model_digest: str,
    corpus: Corpus,
    adapters: Sequence[AdapterRef],
    missing: Missing,
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
    plan = HarvestPlan(storage, key, model, left, tuple(sorted(stream)), cfg.precision, model_digest, lora)
    tokens = sum(unit.num_tokens for unit in corpus.units if unit.name in missing)
    with Bar(tokens, "harvest", "tokens") as bar:
        for _, done in run_units(Left(corpus, missing), HarvestFactory(plan), gangs):
            bar.update(done)


@dataclass(frozen=True)
class Left:
    """The units that lack something, each with the hookpoints that it lacks by source."""

    corpus: Corpus
    missing: Missing

    def __len__(self) -> int:
        return len(self.missing)

    def __iter__(self) -> Iterator[tuple[TokenBatch, dict[str, list[str]]]]:
        for unit in self.corpus.units:
            if todo := self.missing.get(unit.name):
                yield unit, {source: [str(h) for h in hooks] for source, hooks in todo.items()}
