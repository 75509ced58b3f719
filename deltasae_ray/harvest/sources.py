"""The sources of a harvest: base, adapters and the random ones, on record with their noise floors."""

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
from deltasae_ray.harvest.random_draws import RandomDraw, random_draws
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
    """Makes the random adapters and measures noise floors where they are missing, in one gang; all sources
    are then on record and judged."""
    storage, unit = context.storage, sample(context.corpus.of("fit"), cfg.noise_contexts)
    draws = random_draws(adapters) if random_lora else []
    keys = {d.name: random_key(d.like, d.seed, unit, context.model_digest) for d in draws}
    stored = {d.name: stored_random(storage, d.like, keys[d.name], d.name) for d in draws}
    everyone = [*adapters, *(ref for ref in stored.values() if ref is not None)]
    missing = [d for d in draws if stored[d.name] is None]
    facts = _sources(storage, key, everyone)
    todo = [a for a in everyone if not _measured_on(unit, facts[a.name], hookpoints)]
    if todo or missing:
        matches = tuple((d.like, _unmatched(storage, d, keys[d.name])) for d in missing)
        factory = PrepareFactory(
            storage, context.model, tuple(todo), hookpoints, cfg.precision, matches, context.model_digest
        )
        ((_, measured),) = run_units([(unit, None)], factory, context.gangs)
        finished = [finish_random(storage, d, keys[d.name], measured["match"][d.name]) for d in missing]
        todo += finished
        facts |= _sources(storage, key, finished)
        stored |= {ref.name: ref for ref in finished}
        everyone = [*adapters, *(ref for d in draws if (ref := stored[d.name]))]
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


def _unmatched(storage: Storage, drawn: RandomDraw, key: str) -> AdapterRef:
    """A random adapter before its strength is known."""
    return replace(write_rotated(storage, drawn.like, f"{key}/unmatched", drawn.seed), name=drawn.name)


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
