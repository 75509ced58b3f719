"""What a run will cost, printed before anything runs, and what it did cost, printed beside it at the end."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from deltasae_ray.analyses.behaviour.run import DOCUMENTS, POSITIONS
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.corpus.stream import count_windows
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.memory import machine_bytes, rows_told
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import blocks, empty_model
from deltasae_ray.models.size import ModelSize, model_size
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.controls import causal_passes, control_dictionaries, costs_told, recovery_passes
from deltasae_ray.study.grid import shapes
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.monitors import monitors_told
from deltasae_ray.study.requirements import requirements

# Measured on two cores of a server CPU; a plan is an order of magnitude and says so.
_FLOPS_PER_CORE = 6.5e10
_GPU_FLOPS = 2e13
_OVERHEAD_S = {"adapt": 20.0, "harvest": 45.0, "fit": 40.0, "behaviour": 10.0, "diverge": 10.0}
_TRIAL_S, _LEAF_S, _GATE_TOKENS_PER_CONTEXT = 12.0, 4.5, 129
_WINDOW_S = 20.0
"""Gangs and fit workers start, and load, for a window of a stream."""

TIMINGS = "timings.json"
STAGES = ("adapt", "harvest", "fit", "behaviour", "diverge", "report")


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
    names = [a.name for a in study.given] or [
        f"r{rank}" for rank in cfg.adapt.ranks for _ in range(cfg.adapt.seeds)
    ]
    tokens = corpus.num_tokens()
    random = "random_lora" in cfg.diverge.chosen
    sources = 1 + len(names) + random
    trials = len(names) * len(cfg.fit.sizes) * len(cfg.fit.k) * len(cfg.fit.architecture)
    ways = _ways(study, len(names), sources, trials)
    dictionaries = _dictionaries_bytes(study, trials)
    lines = (
        ("model", f"{study.model.label}, {study.model.num_layers} layers of width {study.model.d_model}"),
        ("adapters", ", ".join(names) + (" (given)" if study.given else " (to be trained)")),
        ("layers", ", ".join(map(str, study.layers))),
        *([("monitors", monitors_told(study.monitors))] if study.monitors else []),
        ("tokens", "; ".join(_split_line(study, split) for split in ("fit", "eval"))),
        *(("" if i else "text", note) for i, note in enumerate((*_planted(study), *corpus.notes))),
        (
            "passes",
            f"{tokens:,} tokens × {sources} (base, {len(names)} adapters{', 1 random' if random else ''})",
        ),
        (
            "dictionaries",
            (
                f"{trials} trials × {len(study.layers)} layers × {cfg.fit.seeds} seeds, and the"
                f" controls{_size_line(cfg.fit)}"
            ),
        ),
        ("controls", costs_told(study, len(names), trials)),
        (
            "devices",
            "; ".join(f"{stage} {_devices_told(cfg, stage)}" for stage in ("adapt", "harvest", "fit")),
        ),
        *_needs_lines(study, stages),
        ("memory of a gang", gang_line(cfg.gangs, cfg.model, _parameters(study)[0])),
        ("rows in memory", _rows_line(study)),
        ("shards on disk", f"{ways[cfg.storage.deltas].bytes / 1e6:,.0f} MB below {study.storage.root}"),
        ("dictionaries on disk", f"{dictionaries / 1e6:,.0f} MB"),
        *(
            (f"{'→' if name == cfg.storage.deltas else ' '} storage.deltas={name}", str(way))
            for name, way in ways.items()
        ),
    )
    seconds = {s: _seconds(study, s, len(names), sources, trials) for s in stages if s != "report"}
    if "fit" in stages:
        seconds["harvest"], seconds["fit"] = (
            ways[cfg.storage.deltas].harvest_s,
            ways[cfg.storage.deltas].fit_s,
        )
    return Plan(lines, seconds, ways[cfg.storage.deltas].bytes, dictionaries)


@dataclass(frozen=True)
class Way:
    """What it costs to keep all deltas, or to stream them."""

    bytes: int
    """Most shards on disk at any time."""
    harvest_s: float
    fit_s: float
    """Of a stream also the harvest of all windows but the first, in turns with their fit."""
    told: str

    def __str__(self) -> str:
        minutes = (self.harvest_s + self.fit_s) / 60
        return (
            f"at most {self.bytes / 1e6:,.0f} MB, harvest and fit about {minutes:,.1f} minutes: {self.told}"
        )


def _ways(study: Study, adapters: int, sources: int, trials: int) -> dict[str, Way]:
    """Both ways, whichever is chosen."""
    cfg, fit_tokens, eval_tokens = study.cfg, study.corpus.num_tokens("fit"), study.corpus.num_tokens("eval")
    columns = len(study.layers) * len({*cfg.harvest.sites} - {"lora"})
    per_token = sources * (columns * (2 * study.model.d_model + 1) + 24)
    per_token += _lora_bytes(study, sources) if "lora" in cfg.harvest.sites else 0
    harvest, fit = (_seconds(study, stage, adapters, sources, trials) for stage in ("harvest", "fit"))
    windows = count_windows(fit_tokens, cfg.storage.window_tokens)
    window = -(-fit_tokens // windows)
    kept = window + eval_tokens
    first = _OVERHEAD_S["harvest"] + (harvest - _OVERHEAD_S["harvest"]) * kept / (fit_tokens + eval_tokens)
    rest = harvest - first + fit - trials * _TRIAL_S + windows * _WINDOW_S
    told = (
        f"{windows:,} windows of about {window:,} tokens, harvested and fitted in turns (side by side, and"
        " faster, where the cluster holds both), two on disk beside the first and the evaluation split;"
        " covariances come from the first; Tune has no part in it; a dictionary asked for later needs a new"
        " harvest of the fit split"
    )
    return {
        "stored": Way(
            (fit_tokens + eval_tokens) * per_token,
            harvest,
            fit,
            "all shards stay, for any dictionary asked for later",
        ),
        "stream": Way((kept + min(2, windows - 1) * window) * per_token, first, rest, told),
    }


def _lora_bytes(study: Study, sources: int) -> int:
    """Of a token's low-rank coordinates, as if given adapters adapt the modules that trained ones would."""
    ranks = [a.rank for a in study.given] or [
        rank for rank in study.cfg.adapt.ranks for _ in range(study.cfg.adapt.seeds)
    ]
    ranks += [min(ranks)] * (sources - 1 - len(ranks))  # the random one
    return len(study.layers) * len(study.cfg.adapt.targets) * sum(2 * rank + 2 for rank in ranks)


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
    told = (
        f"{need:.2f} GB of {model.weights} weights{shared}, beside activations, adapters and {gangs.ranks}"
        " processes"
    )
    if not gangs.memory_gb:
        return f"{told}; Ray is asked for none (gangs.memory_gb)"
    on_host = not gangs.gpus_per_gang or model.offload == "cpu"
    return f"{told}; Ray is asked for {gangs.memory_gb:g} GB" + (
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
    return rows_told(
        4 * study.model.d_model * (fit_tokens + eval_tokens),
        reads,
        cfg.fit.workers * cfg.fit.at_once,
        machine_bytes(),
    )


def _seconds(study: Study, stage: str, adapters: int, sources: int, trials: int) -> float:
    cfg, speed = study.cfg, _speed(study.cfg, stage)
    whole, stack, body = _parameters(study)
    gate = _GATE_TOKENS_PER_CONTEXT * stack + POSITIONS * (whole - stack)
    documents = DOCUMENTS * len(study.corpus.names)
    passes, leaves = 2.0 * study.corpus.num_tokens(), trials * len(study.layers) * cfg.fit.seeds
    controls = _controls(study, trials)
    step = 8.0 * cfg.fit.batch_tokens * study.model.d_model * max(cfg.fit.sizes)
    work = {
        "adapt": 0.0 if study.given else adapters * 2.5 * 2.0 * cfg.adapt.max_tokens * whole / speed,
        "harvest": passes * sources * body / speed,
        "fit": trials * _TRIAL_S + (leaves + controls) * cfg.fit.steps * step / speed,
        "behaviour": 2.0 * (1 + adapters) * documents * gate / speed,
        "diverge": (
            leaves * _LEAF_S
            + 2.0
            * (recovery_passes(study, adapters) + causal_passes(study, adapters))
            * cfg.corpus.context_len
            * whole
            / speed
        ),
    }
    return work[stage] + _OVERHEAD_S[stage]


def devices(cfg: StudyConfig, stage: str) -> float:
    """GPUs that a stage works on at once, as its own words say; 0 where it runs on CPUs."""
    if stage == "adapt":
        return float(cfg.gangs.gpus_per_rank * (cfg.gangs.ranks if cfg.model.sharding == "zero3" else 1))
    if stage == "fit":
        return cfg.fit.gpus_per_worker * cfg.fit.workers * cfg.fit.at_once
    return float(cfg.gangs.gpus_per_gang * cfg.gangs.gangs)


def _devices_told(cfg: StudyConfig, stage: str) -> str:
    if stage == "adapt" and cfg.adapters:
        return "nothing to train"
    if gpus := devices(cfg, stage):
        return f"{gpus:g} GPU{'s' if gpus > 1 else ''}"
    return "CPUs" + (
        " ALTHOUGH gangs have GPUs (fit.gpus_per_worker=0)"
        if stage == "fit" and cfg.gangs.gpus_per_gang
        else ""
    )


def _speed(cfg: StudyConfig, stage: str) -> float:
    """Operations a second of all that a stage works on."""
    if gpus := devices(cfg, stage):
        return gpus * _GPU_FLOPS
    machines = 1 if stage == "adapt" else cfg.gangs.gangs  # adapters are trained one by one
    return (os.cpu_count() or 1) * _FLOPS_PER_CORE * machines


def _needs_lines(study: Study, stages: tuple[str, ...]) -> list[tuple[str, str]]:
    needs = requirements(study.cfg, size_of(study), [a.rank for a in study.given])
    return [(f"{each.stage} needs", str(each)) for each in needs if each.stage in stages]


def size_of(study: Study) -> ModelSize:
    """Counts the base model's parameters and widths, without its weights."""
    return model_size(empty_model(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code))


def _controls(study: Study, trials: int) -> int:
    """Dictionaries that are fitted beside the grid, the toy references included."""
    toys = len(study.layers) * len(shapes(study.cfg.fit)) if study.cfg.reference.is_toy else 0
    return toys + sum(control_dictionaries(study.cfg, len(study.layers), trials).values())


def _dictionaries_bytes(study: Study, trials: int) -> int:
    """As if all were of the mean size of the grid: every control is fitted in each of its sizes."""
    cfg = study.cfg
    sizes = [dictionary_bytes(cfg, study.model.d_model, d_sae) for d_sae in cfg.fit.sizes]
    return (trials * len(study.layers) * cfg.fit.seeds + _controls(study, trials)) * sum(sizes) // len(sizes)


def dictionary_bytes(cfg: StudyConfig, d_model: int, d_sae: int) -> int:
    """Most of one dictionary on disk: fp32 weights and biases, and MLflow's copy of them in a store below the
    root."""
    return 4 * (2 * d_sae * d_model + d_sae + d_model) * (1 if cfg.tracking.uri else 2)


def _parameters(study: Study) -> tuple[int, int, int]:
    """Weights of the whole model, of all its blocks, and of those up to the deepest hookpoint."""
    model = empty_model(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
    return sum(p.numel() for p in model.parameters()), sum(sizes), sum(sizes[: study.layers[-1] + 1])


@dataclass
class Clock:
    """Measures the stages of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - start

    def longest(self, storage: Storage, of: str) -> dict[str, float]:
        """Stage → the longest it took in any run, kept in the storage: a run that finds a stage done tells
        nothing of its cost.

        Args:
            of: what was run; times of anything else are forgotten.
        """
        kept = storage.read_json(TIMINGS) if storage.exists(TIMINGS) else {}
        before = kept["seconds"] if kept.get("of") == of else {}
        longest = {stage: max(took, before.get(stage, 0.0)) for stage, took in self.seconds.items()}
        storage.write_json(TIMINGS, {"of": of, "seconds": longest})
        return longest

    def beside(self, plan: Plan) -> str:
        """A table of planned and actual minutes."""
        rows = [
            f"  {s:<9}  {_minutes(plan.seconds.get(s)):>8}  {_minutes(took):>8}"
            for s, took in self.seconds.items()
        ]
        return "\n".join([f"  {'minutes':<9}  {'planned':>8}  {'actual':>8}", *rows])


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f}"
