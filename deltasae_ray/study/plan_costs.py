"""What a study costs: seconds by stage, bytes on disk, and devices."""

import os
from dataclasses import dataclass

from deltasae_ray.analyses.behaviour.run import DOCUMENTS, POSITIONS
from deltasae_ray.corpus.stream import count_windows
from deltasae_ray.elicit.config import ElicitConfig
from deltasae_ray.elicit.sampling import Sampling
from deltasae_ray.models.load import blocks, empty_model
from deltasae_ray.models.size import ModelSize, model_size
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.controls import causal_passes, control_dictionaries, random_adapters, recovery_passes
from deltasae_ray.study.grid import shapes
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.requirements import ranks_of
from deltasae_ray.study.scale import GPU_FLOPS, Costs, Scale, costs

# Measured on two cores of a server CPU; a plan is an order of magnitude and says so.
_FLOPS_PER_CORE = 6.5e10
_OVERHEAD_S = {
    "adapt": 20.0,
    "harvest": 45.0,
    "fit": 40.0,
    "behaviour": 10.0,
    "elicit": 20.0,
    "diverge": 10.0,
}
_TRIAL_S, _LEAF_S, _CELL_S, _GATE_TOKENS_PER_CONTEXT = 12.0, 4.5, 9.0, 129
_OPENINGS, _HUNT_TOKENS = 6, 12_000
_WINDOW_S = 20.0
"""Gangs and fit workers start, and load, for a window of a stream."""


@dataclass(frozen=True)
class Way:
    """What it costs to keep all deltas, or to stream them."""

    bytes: int
    """Most shards on disk at any time."""
    harvest_s: float
    fit_s: float
    """Of a stream also the harvest of all windows but the first, in turns with their fit."""
    text: str

    def __str__(self) -> str:
        minutes = (self.harvest_s + self.fit_s) / 60
        return (
            f"at most {self.bytes / 1e6:,.0f} MB, harvest and fit about {minutes:,.1f} minutes: {self.text}"
        )


def ways_to_keep_deltas(study: Study, adapters: int, sources: int, trials: int) -> dict[str, Way]:
    """Both ways, whichever is chosen."""
    cfg, fit_tokens, eval_tokens = study.cfg, study.corpus.num_tokens("fit"), study.corpus.num_tokens("eval")
    columns = len(study.layers) * len({*cfg.harvest.sites} - {"lora"})
    per_token = sources * (columns * (2 * study.model.d_model + 1) + 24)
    per_token += _lora_bytes(study) if "lora" in cfg.harvest.sites else 0
    harvest, fit = (stage_seconds(study, stage, adapters, sources, trials) for stage in ("harvest", "fit"))
    windows = count_windows(fit_tokens, cfg.storage.window_tokens)
    window = -(-fit_tokens // windows)
    kept = window + eval_tokens
    first = _OVERHEAD_S["harvest"] + (harvest - _OVERHEAD_S["harvest"]) * kept / (fit_tokens + eval_tokens)
    rest = harvest - first + fit - trials * _TRIAL_S + windows * _WINDOW_S
    text = (
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
        "stream": Way((kept + min(2, windows - 1) * window) * per_token, first, rest, text),
    }


def _lora_bytes(study: Study) -> int:
    """Bytes of a token's low-rank coordinates, as if given adapters adapt the modules that trained ones
    would."""
    ranks = ranks_of(study.cfg, [a.rank for a in study.given])
    return len(study.layers) * len(study.cfg.adapt.targets) * sum(2 * rank + 2 for rank in ranks)


def stage_seconds(study: Study, stage: str, adapters: int, sources: int, trials: int) -> float:
    cfg, flops = study.cfg, speed(study.cfg, stage)
    whole, stack, body = parameters(study)
    gate = _GATE_TOKENS_PER_CONTEXT * stack + POSITIONS * (whole - stack)
    documents = DOCUMENTS * len(study.corpus.names)
    passes, leaves = 2.0 * study.corpus.num_tokens(), trials * len(study.layers) * cfg.fit.seeds
    controls = control_count(study, trials)
    step = 8.0 * cfg.fit.batch_tokens * study.model.d_model * max(cfg.fit.sizes)
    work = {
        "adapt": 0.0 if study.given else adapters * 2.5 * 2.0 * cfg.adapt.max_tokens * whole / flops,
        "harvest": passes * sources * body / flops,
        "fit": trials * _TRIAL_S + (leaves + controls) * cfg.fit.steps * step / flops,
        "behaviour": 2.0 * (1 + adapters) * documents * gate / flops,
        "elicit": 4.0 * whole * (sources * sampled_tokens(cfg.elicit) + (sources - 1) * _hunted(cfg)) / flops,
        "diverge": (
            leaves * _LEAF_S
            + trials * len(study.layers) * _CELL_S
            + 2.0
            * (recovery_passes(study, adapters) + causal_passes(study, adapters))
            * cfg.corpus.context_len
            * whole
            / flops
        ),
    }
    return work[stage] + _OVERHEAD_S[stage]


def sampled_tokens(cfg: ElicitConfig) -> int:
    """Tokens that one source writes, about."""
    return _OPENINGS * len(Sampling().alphas) * cfg.samples * cfg.length


def _hunted(cfg: StudyConfig) -> int:
    """Tokens that pass the model in one adapter's hunt, about: the scan, the pairs, and what is tested."""
    return cfg.elicit.scan + _HUNT_TOKENS if cfg.elicit.samples else 0


def elicited_line(cfg: ElicitConfig, sources: int) -> str:
    """What is sampled and hunted, in words."""
    if not cfg.samples:
        return "nothing (elicit.samples=0): no trigger is hunted"
    texts = _OPENINGS * len(Sampling().alphas) * cfg.samples
    return (
        f"about {texts} texts of {cfg.length} tokens from each of {sources} sources; a hunt for triggers in"
        f" {sources - 1} adapters, {cfg.scan:,} tokens of the vocabulary scanned"
    )


def devices(cfg: StudyConfig, stage: str) -> float:
    """GPUs that a stage works on at once, as its own words say; 0 where it runs on CPUs."""
    if stage == "adapt":
        return float(cfg.gangs.gpus_per_rank * (cfg.gangs.ranks if cfg.model.sharding == "zero3" else 1))
    if stage == "fit":
        return cfg.fit.gpus_per_worker * cfg.fit.workers * cfg.fit.at_once
    return float(cfg.gangs.gpus_per_gang * cfg.gangs.gangs)


def speed(cfg: StudyConfig, stage: str) -> float:
    """Operations a second of all that a stage works on."""
    if gpus := devices(cfg, stage):
        return gpus * GPU_FLOPS
    machines = 1 if stage == "adapt" else cfg.gangs.gangs  # adapters are trained one by one
    return (os.cpu_count() or 1) * _FLOPS_PER_CORE * machines


def size_of(study: Study) -> ModelSize:
    """Counts the base model's parameters and widths, without its weights."""
    return model_size(empty_model(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code))


def control_count(study: Study, trials: int) -> int:
    """Dictionaries that are fitted beside the grid, the toy references included."""
    toys = len(study.layers) * len(shapes(study.cfg.fit)) if study.cfg.reference.is_toy else 0
    return toys + sum(
        control_dictionaries(
            study.cfg, len(study.layers), trials, random_adapters(study), siblings=not study.has_siblings
        ).values()
    )


def dictionaries_bytes(study: Study, trials: int) -> int:
    """Bytes of all dictionaries, as if all were of the mean size of the grid: every control is fitted in each
    of its sizes."""
    cfg = study.cfg
    sizes = [dictionary_bytes(cfg, study.model.d_model, d_sae) for d_sae in cfg.fit.sizes]
    return (
        (trials * len(study.layers) * cfg.fit.seeds + control_count(study, trials)) * sum(sizes) // len(sizes)
    )


def dictionary_bytes(cfg: StudyConfig, d_model: int, d_sae: int) -> int:
    """Most of one dictionary on disk: fp32 weights and biases, and MLflow's copy of them in a store below the
    root."""
    return 4 * (2 * d_sae * d_model + d_sae + d_model) * (1 if cfg.tracking.uri else 2)


def parameters(study: Study) -> tuple[int, int, int]:
    """Weights of the whole model, of all its blocks, and of those up to the deepest hookpoint."""
    model = empty_model(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
    return sum(p.numel() for p in model.parameters()), sum(sizes), sum(sizes[: study.layers[-1] + 1])


def devices_line(cfg: StudyConfig, stage: str) -> str:
    if stage == "adapt" and cfg.adapters:
        return "nothing to train"
    if gpus := devices(cfg, stage):
        return f"{gpus:g} GPU{'s' if gpus > 1 else ''}"
    return "CPUs" + (
        " ALTHOUGH gangs have GPUs (fit.gpus_per_worker=0)"
        if stage == "fit" and cfg.gangs.gpus_per_gang
        else ""
    )


def head_costs(study: Study, adapters: int, sources: int, trials: int) -> Costs:
    """What the driver and the store bear, and whether gangs or they take longer."""
    cfg, tokens = study.cfg, study.corpus.num_tokens()
    return costs(
        Scale(
            tokens,
            adapters,
            layers=len(study.layers),
            dictionaries=max(1, trials * cfg.fit.seeds // max(1, adapters)),
            sources=sources,
            unit_tokens=max(1, tokens // max(1, len(study.corpus.units))),
            gangs=cfg.gangs.gangs,
            flops=speed(cfg, "harvest") / cfg.gangs.gangs,
            parameters=parameters(study)[2],
        )
    )
