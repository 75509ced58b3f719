"""What a run will cost, printed before anything runs, and what it did cost, printed beside it at the end."""

from dataclasses import dataclass

from deltasae_ray.analyses.divergence.adapter_seeds import describe_pairs
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.corpus.stream import count_windows
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.memory import describe_rows, machine_bytes
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.study.controls import describe_costs, random_adapters
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.monitors import describe_monitors
from deltasae_ray.study.plan_costs import (
    devices_line,
    dictionaries_bytes,
    elicited_line,
    head_costs,
    parameters,
    size_of,
    stage_seconds,
    ways_to_keep_deltas,
)
from deltasae_ray.study.requirements import requirements

STAGES = ("adapt", "harvest", "fit", "behaviour", "elicit", "diverge", "report")


@dataclass(frozen=True)
class Plan:
    """Figures of one study, before it runs."""

    lines: tuple[tuple[str, str], ...]
    """What is printed: label and value."""
    seconds: dict[str, float]
    """Stage → estimate for doing all of it; what is already done costs nothing."""
    shard_bytes: int
    """Most shards on disk at any time."""
    dictionary_bytes: int
    """All dictionaries, the controls' included, and MLflow's copies where its store is below the root."""

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.lines)
        minutes = ", ".join(f"{stage} {s / 60:.1f}" for stage, s in self.seconds.items())
        rows = [
            *self.lines,
            (
                "minutes, about",
                f"{minutes}; total {sum(self.seconds.values()) / 60:.0f} if nothing is done yet",
            ),
        ]
        return "\n".join(f"  {label:<{width}}  {value}" for label, value in rows)


def make_plan(study: Study, stages: tuple[str, ...]) -> Plan:
    """Counts tokens, passes, dictionaries and bytes of `study`."""
    cfg, corpus = study.cfg, study.corpus
    names = study.adapter_names
    tokens = corpus.num_tokens()
    randoms = random_adapters(study)
    sources, random = 1 + len(names) + randoms, f", {randoms} random" if randoms else ""
    trials = len(names) * len(cfg.fit.sizes) * len(cfg.fit.k) * len(cfg.fit.architecture)
    ways = ways_to_keep_deltas(study, len(names), sources, trials)
    dictionaries = dictionaries_bytes(study, trials)
    lines = (
        ("model", f"{study.model.label}, {study.model.num_layers} layers of width {study.model.d_model}"),
        ("adapters", _adapters_line(study)),
        ("layers", ", ".join(map(str, study.layers))),
        *([("monitors", describe_monitors(study.monitors))] if study.monitors else []),
        ("tokens", "; ".join(_split_line(study, split) for split in ("fit", "eval"))),
        *(("" if i else "text", note) for i, note in enumerate((*_planted(study), *corpus.notes))),
        ("passes", f"{tokens:,} tokens × {sources} (base, {len(names)} adapters{random})"),
        (
            "dictionaries",
            (
                f"{trials} trials × {len(study.layers)} layers × {cfg.fit.seeds} seeds, and the"
                f" controls{_size_line(cfg.fit)}"
            ),
        ),
        ("elicit", elicited_line(cfg.elicit, sources)),
        ("controls", describe_costs(study, len(names), trials)),
        *(("pairs of adapters", line) for line in [describe_pairs(len(names), cfg.diverge.pairs)] if line),
        (
            "devices",
            "; ".join(f"{stage} {devices_line(cfg, stage)}" for stage in ("adapt", "harvest", "fit")),
        ),
        *_needs_lines(study, stages),
        ("memory of a gang", gang_line(cfg.gangs, cfg.model, parameters(study)[0])),
        ("rows in memory", _rows_line(study)),
        ("the head", str(head_costs(study, len(names), sources, trials))),
        ("shards on disk", f"{ways[cfg.storage.deltas].bytes / 1e6:,.0f} MB below {study.storage.root}"),
        ("dictionaries on disk", f"{dictionaries / 1e6:,.0f} MB"),
        *(
            (f"{'→' if name == cfg.storage.deltas else ' '} storage.deltas={name}", str(way))
            for name, way in ways.items()
        ),
    )
    counted = {*STAGES} - {"report"} - (set() if cfg.elicit.samples else {"elicit"})
    seconds = {s: stage_seconds(study, s, len(names), sources, trials) for s in stages if s in counted}
    if "fit" in stages:
        seconds["harvest"], seconds["fit"] = (
            ways[cfg.storage.deltas].harvest_s,
            ways[cfg.storage.deltas].fit_s,
        )
    return Plan(lines, seconds, ways[cfg.storage.deltas].bytes, dictionaries)


def _adapters_line(study: Study) -> str:
    """Names of the adapters, and where they come from."""
    if study.given:
        return ", ".join(study.adapter_names) + " (given)"
    ranks, seeds = ", ".join(f"r{rank}" for rank in study.cfg.adapt.ranks), study.cfg.adapt.seeds
    return f"{ranks} (to be trained{f', each from {seeds} seeds' if seeds > 1 else ''})"


def _split_line(study: Study, split: str) -> str:
    parts = [f"{name} {study.corpus.num_tokens(split, name):,}" for name in study.corpus.names]
    return (
        f"{split} {study.corpus.num_tokens(split):,} in {study.corpus.num_documents(split)} documents"
        f" ({', '.join(parts)})"
    )


def _planted(study: Study) -> list[str]:
    """What a marker_share that was asked for writes into the text."""
    units = [unit for unit in study.corpus.units if unit.corpus == DOMAIN]
    planted = sum(any(c.marker) for c in study.corpus.adapt) + sum(
        int(unit.marker.any(axis=1).sum()) for unit in units
    )
    contexts = len(study.corpus.adapt) + sum(len(unit.doc_ids) for unit in units)
    where = (
        f"in {planted:,} of {contexts:,} contexts of the domain"
        f" (corpus.marker_share={study.cfg.corpus.marker_share:g})"
    )
    return [f"the marker is planted {where}"] if planted else []


def _size_line(fit: FitConfig) -> str:
    return (
        f"; d_sae is chosen after the harvest, and minutes are those of {fit.sizes[0]}"
        if fit.d_sae == "auto"
        else ""
    )


def gang_line(gangs: GangConfig, model: ModelConfig, parameters: int) -> str:
    """What the weights of the whole model take in one gang, which its ranks share: the gate and the random
    adapter run all blocks."""
    need = (2 if model.weights == "bf16" else 4) * parameters / 1e9
    shared = f", shared by {gangs.ranks} ranks" if gangs.ranks > 1 else ""
    text = (
        f"{need:.2f} GB of {model.weights} weights{shared}, beside activations, adapters and {gangs.ranks}"
        " processes"
    )
    if not gangs.memory_gb:
        return f"{text}; Ray is asked for none (gangs.memory_gb)"
    on_host = not gangs.gpus_per_gang or model.offload == "cpu"
    return f"{text}; Ray is asked for {gangs.memory_gb:g} GB" + (
        ": TOO LITTLE" if on_host and gangs.memory_gb < need else ""
    )


def _rows_line(study: Study) -> str:
    """What a fit worker holds of the harvest at once; a search fits all layers of a trial in lock step."""
    cfg, fit_tokens, eval_tokens = study.cfg, study.corpus.num_tokens("fit"), study.corpus.num_tokens("eval")
    if (
        cfg.storage.deltas == "stream"
    ):  # the first window, which gives mean and scale, and the one whose turn it is
        fit_tokens = 2 * -(-fit_tokens // count_windows(fit_tokens, cfg.storage.window_tokens))
    reads = len(study.layers) if cfg.fit.search != "none" else 1
    return describe_rows(
        4 * study.model.d_model * (fit_tokens + eval_tokens),
        reads,
        cfg.fit.workers * cfg.fit.at_once,
        machine_bytes(),
    )


def _needs_lines(study: Study, stages: tuple[str, ...]) -> list[tuple[str, str]]:
    needs = requirements(study.cfg, size_of(study), [a.rank for a in study.given])
    return [(f"{each.stage} needs", str(each)) for each in needs if each.stage in stages]
