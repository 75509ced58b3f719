"""The sources of a harvest: base, adapters and the random one, on record with their noise floors."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from deltasae_ray import gauges
from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import AdapterError, PrecisionError
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.harvest.prepare import (
    PrepareFactory,
    finish_random,
    random_key,
    sample,
    stored_random,
    write_rotated,
)
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.records import Source, read_sources, write_source
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)

WARN_SNR = 100.0
"""Signal-to-noise ratio below which a hookpoint is warned of."""
RANDOM_SEED = 0
"""Of the random adapter: the same for all studies, so that nobody draws until a control pleases."""


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
        same = known.get(source.digest)
        recorded[source.name] = source if same is None else replace(same, name=source.name)
        if recorded[source.name] != same:
            write_source(storage, key, recorded[source.name])
    return recorded


def prepare_sources(
    context: StageContext,
    key: str,
    cfg: HarvestConfig,
    adapters: Sequence[AdapterRef],
    hookpoints: tuple[Hookpoint, ...],
    *,
    random_lora: bool,
) -> list[AdapterRef]:
    """Makes the random adapter and measures noise floors where they are missing, in one gang; all sources are
    then on record and judged."""
    storage, unit = context.storage, sample(context.corpus.of("fit"), cfg.noise_contexts)
    everyone, match, into = list(adapters), None, ""
    if random_lora and adapters:
        like = rotated_from(adapters)
        into = random_key(like, RANDOM_SEED, unit, context.model_digest)
        if (stored := stored_random(storage, like, into)) is not None:
            everyone.append(stored)
        else:
            match = like, write_rotated(storage, like, f"{into}/unmatched", RANDOM_SEED)
    facts = _sources(storage, key, everyone)
    todo = [a for a in everyone if not _measured_on(unit, facts[a.name], hookpoints)]
    if todo or match:
        factory = PrepareFactory(
            storage, context.model, tuple(todo), hookpoints, cfg.precision, match, context.model_digest
        )
        ((_, measured),) = run_units([(unit, None)], factory, context.gangs)
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
        if snr is not None:
            gauges.show("snr", snr, adapter=ref.name, hookpoint=str(hookpoint))
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
