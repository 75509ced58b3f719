"""What each stage of a configuration asks of a machine and of its GPUs, by the formulas of docs/memory.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.adapt.config import CPUS_PER_WORKER as TRAINING_CPUS
from deltasae_ray.fit.config import CPUS_PER_WORKER as FIT_CPUS
from deltasae_ray.harvest.random_draws import random_ranks
from deltasae_ray.models.size import ModelSize
from deltasae_ray.runtime.node_types import NodeType
from deltasae_ray.sae.architectures import SELECTING
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.token_check import tokens_to_fit

PROCESS = 2.0e9
"""Bytes of the machine's memory that a process takes which holds nothing yet: Python, torch, Ray."""
DEVICE_PROCESS = 1.5e9
"""Bytes of a GPU that a process takes beside its tensors: CUDA's context, the workspaces of its libraries,
gaps between tensors."""
_NVME_BUFFERS = 5
"""Buffers, each for one share of a parameter, that DeepSpeed keeps in the machine's memory where shares lie
in files."""
_WIDE_READS = 8
"""Copies of d_model numbers per token that stand at once in a forward pass: the stream, norms, what a block
adds."""
_SAVED_READS = 16
"""Copies of d_model numbers per token that a block saves for the backward pass, of blocks with four norms."""


@dataclass(frozen=True)
class Needs:
    """What one actor of a stage needs; it stands on one machine."""

    stage: str
    actor: str
    count: int
    """Actors at once."""
    cpus: float
    gpus: float
    """Of which each, or the share of one, must hold `device_bytes`."""
    device_bytes: float
    """On each of its GPUs; 0 where it runs on CPUs."""
    host_bytes: float
    """Of the machine's memory, at its highest, all of the actor's processes together."""
    asked_bytes: float
    """Of the machine's memory, as Ray is asked for it."""
    parts: tuple[tuple[str, float], ...]
    """What makes up the memory of one process where it computes: name and bytes."""

    def __str__(self) -> str:
        times = f"{self.count} × " if self.count > 1 else ""
        number = "1 GPU" if self.gpus == 1 else f"{self.gpus:g} GPUs"
        gpus = (
            f", {number} with {self.device_bytes / 1e9:.1f} GB{' each' if self.gpus > 1 else ''}"
            if self.gpus
            else ", no GPU"
        )
        parts = ", ".join(f"{name} {part / 1e9:.1f}" for name, part in self.parts if part >= 5e7)
        return (
            f"{times}{self.actor}: {self.cpus:g} CPUs, {self.host_bytes / 1e9:.1f} GB of the machine's"
            f" memory{gpus}{f' ({parts})' if parts else ''}"
        )


def requirements(cfg: StudyConfig, size: ModelSize, given_ranks: Sequence[int] = ()) -> tuple[Needs, ...]:
    """Reckons what the actors of each stage need.

    Args:
        given_ranks: of the adapters that the user brought; empty where they are trained.
    """
    trained = () if given_ranks or cfg.adapters else (_training(cfg, size),)
    return *trained, _gang(cfg, size, given_ranks), _fitting(cfg, size)


def obstacle(needs: Needs, kind: NodeType) -> str:
    """Says why no machine of a type can hold an actor; empty where one can. A GPU of unknown memory is taken
    to be large enough."""
    if needs.cpus > kind.cpus:
        return f"{kind.cpus:g} CPUs are fewer than {needs.cpus:g}"
    if needs.gpus > kind.gpus:
        return f"{kind.gpus:g} GPUs are fewer than {needs.gpus:g}"
    room = None if kind.gpu_bytes is None else kind.gpu_bytes * (min(1.0, needs.gpus) or 1.0)
    if needs.gpus and room is not None and needs.device_bytes > room:
        return f"its GPUs hold {room / 1e9:.1f} GB, fewer than {needs.device_bytes / 1e9:.1f} GB"
    if kind.memory and needs.asked_bytes > kind.memory:
        return (
            f"its memory of {kind.memory / 1e9:.1f} GB is less than the {needs.asked_bytes / 1e9:.1f} GB that"
            " Ray is asked for"
        )
    machine = (
        kind.memory + kind.object_store
    )  # an actor may take what Ray keeps for objects too, where it asks Ray for less
    if kind.memory and needs.host_bytes > machine:
        return f"its memory of {machine / 1e9:.1f} GB is less than {needs.host_bytes / 1e9:.1f} GB"
    return ""


def fits(needs: Sequence[Needs], kinds: Sequence[NodeType]) -> bool:
    """Tells whether every actor can stand on some node type."""
    return all(any(not obstacle(each, kind) for kind in kinds) for each in needs)


def trained_ranks(cfg: StudyConfig, given_ranks: Sequence[int] = ()) -> list[int]:
    """The ranks of the adapters under study."""
    return list(given_ranks) or [rank for rank in cfg.adapt.ranks for _ in range(cfg.adapt.seeds)]


def ranks_beside(cfg: StudyConfig, given_ranks: Sequence[int] = ()) -> list[int]:
    """The ranks of the random adapters beside them."""
    return random_ranks(trained_ranks(cfg, given_ranks)) if "random_lora" in cfg.diverge.chosen else []


def ranks_of(cfg: StudyConfig, given_ranks: Sequence[int] = ()) -> list[int]:
    """The ranks of all adapters that are attached at once, the random ones included."""
    return trained_ranks(cfg, given_ranks) + ranks_beside(cfg, given_ranks)


@dataclass(frozen=True)
class _Held:
    """The base model in one process, in bytes."""

    device: float
    """Where it computes: weights or a share of them at their largest, and what is gathered or cast of one
    module."""
    host: float
    """Of the machine's memory, while it loads or for good."""


def _weights(cfg: StudyConfig, size: ModelSize, ranks: int) -> _Held:
    model, narrow = cfg.model, 2.0 if cfg.model.weights == "bf16" else 4.0
    cast = 4.0 * size.largest if model.weights == "bf16" else 0.0
    if model.sharding == "none":
        return _Held(narrow * size.parameters + cast, narrow * size.parameters)
    # Shares are made in fp32, and rounded once all are there.
    share, gathered = (
        4.0 * size.parameters / ranks,
        (4.0 if model.weights == "fp32" else 2.0) * size.largest + cast,
    )
    if model.offload == "none":
        return _Held(share + gathered, 4.0 * size.largest)
    in_machine = share if model.offload == "cpu" else _NVME_BUFFERS * max(4.0e8, 4.0 * size.largest / ranks)
    return _Held(gathered, in_machine + 4.0 * size.largest)


def _needs(  # noqa: PLR0913 - one row of the table of needs
    stage: str,
    actor: str,
    count: int,
    asked: tuple[float, float, float],
    parts: dict[str, float],
    host: float,
    world: int,
) -> Needs:
    """What an actor needs with `world` processes, each of which takes `parts` where it computes and `host` in
    the machine."""
    cpus, gpus, memory = asked
    taken = sum(parts.values())
    if gpus:
        return Needs(
            stage,
            actor,
            count,
            cpus,
            gpus,
            taken + DEVICE_PROCESS,
            world * (host + PROCESS),
            memory,
            tuple(parts.items()),
        )
    return Needs(
        stage,
        actor,
        count,
        cpus,
        0.0,
        0.0,
        world * (max(host, taken) + PROCESS),
        memory,
        tuple(parts.items()),
    )


def _training(cfg: StudyConfig, size: ModelSize) -> Needs:
    adapt, workers = cfg.adapt, cfg.gangs.ranks if cfg.model.sharding == "zero3" else 1
    tokens = -(-adapt.batch_contexts // workers) * cfg.corpus.context_len
    attention = size.heads * cfg.corpus.context_len
    read = sum(size.inputs.get(name, 0) for name in adapt.targets)
    saved = size.layers * (size.block_outputs + _SAVED_READS * size.d_model + 4 * attention + 1.25 * read)
    backward = size.block_outputs + _WIDE_READS * size.d_model + 2 * attention
    held = _weights(cfg, size, workers)
    parts = {
        "weights": held.device,
        # The factors, their gradients and one copy of these, and Adam's two moments.
        "LoRA and Adam": 20.0 * size.lora(max(adapt.ranks, default=0), adapt.targets),
        "activations": 4.0 * tokens * (saved + backward),
        "head": 4.0 * tokens * (size.vocabulary + 3 * size.d_model),
    }
    asked = TRAINING_CPUS, float(cfg.gangs.gpus_per_rank), 0.0
    return _needs("adapt", "training worker", workers, asked, parts, held.host, 1)


def _gang(cfg: StudyConfig, size: ModelSize, given_ranks: Sequence[int]) -> Needs:
    """What a gang of the harvest, the behaviour gate and the patched passes needs: the gate and the random
    adapters' strength take all blocks."""
    gangs, corpus, ranks = cfg.gangs, cfg.corpus, ranks_of(cfg, given_ranks)
    length = corpus.context_len + 1
    together = 1 + len(ranks) if cfg.model.sharding != "none" or cfg.harvest.precision == "mixed" else 1
    attention = size.heads * length
    numbers = size.block_outputs + _WIDE_READS * size.d_model + 3 * attention
    tokens = corpus.contexts_per_unit * length
    columns = len(cfg.layers) * len({*cfg.harvest.sites} - {"lora"}) * size.d_model
    # One pass keeps the rows of all of its sources; passes one by one keep the base's, the adapter's and
    # their difference.
    kept = columns * (max(3, together + 1) if together > 1 else 3)
    sample = min(cfg.harvest.noise_contexts, corpus.contexts_per_unit) * length
    wide = 0.0
    if (
        cfg.harvest.precision == "fp32"
    ):  # noise is held against fp64: one adapter at a time, one module's weights cast
        wide = 8.0 * (sample * (numbers + columns * (1 + len(ranks))) + size.largest_in_block)
    held = _weights(cfg, size, gangs.ranks)
    parts = {
        "weights": held.device,
        "adapters": sum(4.0 * size.lora(rank, cfg.adapt.targets) for rank in ranks),
        "activations": max(4.0 * tokens * (numbers * together + kept), wide),
    }
    asked = gangs.cpus_per_gang, float(gangs.gpus_per_gang), gangs.memory_gb * 1e9
    return _needs("harvest", "gang", gangs.gangs, asked, parts, held.host, gangs.ranks)


def _fitting(cfg: StudyConfig, size: ModelSize) -> Needs:
    fit, corpus = cfg.fit, cfg.corpus
    batch = fit.batch_tokens if fit.layout == "layer_parallel" else -(-fit.batch_tokens // fit.workers)
    wide = 3 if all(a in SELECTING for a in fit.architecture) else 6
    largest = max(fit.sizes)
    parts = {
        # Two matrices with gradient, two moments and a temporary each; a batch's pre-activations and what is
        # made of them.
        "dictionary and Adam": 40.0 * largest * size.d_model,
        "batch": 4.0 * batch * (wide * largest + 4 * size.d_model),
    }
    read = corpus.fit_tokens or tokens_to_fit(fit)
    if cfg.storage.deltas == "stream":
        read = min(read, 2 * cfg.storage.window_tokens)
    rows = 8.0 * size.d_model * (read + corpus.eval_tokens)  # a read needs its rows twice for a moment
    asked = FIT_CPUS, fit.gpus_per_worker, 0.0
    needs = _needs("fit", "fit worker", fit.workers * fit.at_once, asked, parts, rows, 1)
    if fit.gpus_per_worker:
        return needs
    return Needs(**{**vars(needs), "host_bytes": rows + sum(parts.values()) + PROCESS})
