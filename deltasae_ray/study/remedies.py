"""A study that no node type can hold is refused, with the changes of its words that would let it run."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from deltasae_ray.errors import ConfigError, ResourceError
from deltasae_ray.models.size import ModelSize
from deltasae_ray.runtime.node_types import NodeType
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.requirements import Needs, fits, obstacle, requirements


def check_fits(
    cfg: StudyConfig, size: ModelSize, kinds: Sequence[NodeType], given_ranks: Sequence[int] = ()
) -> None:
    """Holds a configuration against the node types of a cluster, also those of which no machine runs yet.

    Raises:
        ResourceError: an actor that no node type can ever hold; names the stage, the limit of every type, and
            what to change.
    """
    needs = requirements(cfg, size, given_ranks)
    for each in needs:
        hindered = [(kind, obstacle(each, kind)) for kind in kinds]
        if all(why for _, why in hindered):
            alike = {
                (kind.cpus, kind.gpus, kind.gpu, why): f"{kind} ({why})" for kind, why in reversed(hindered)
            }
            there = "; ".join(reversed(alike.values())) or "none"
            raise ResourceError(
                f"the {each.stage} stage can never be placed on this cluster. It needs {each}. Node types:"
                f" {there}. {_remedy(cfg, size, kinds, given_ranks, each)}"
            )


def _remedy(
    cfg: StudyConfig, size: ModelSize, kinds: Sequence[NodeType], given_ranks: Sequence[int], lacking: Needs
) -> str:
    """Only what was tried and would do."""
    larger = (
        f"a node type of {lacking.cpus:g} CPUs,"
        f" {math.ceil(max(lacking.host_bytes, lacking.asked_bytes) / 1e9)} GB of memory"
    )
    if lacking.gpus:
        each = lacking.device_bytes / min(1.0, lacking.gpus)
        number = "1 GPU" if lacking.gpus <= 1 else f"{lacking.gpus:g} GPUs"
        larger += f" and {number} of {math.ceil(each / 1e9)} GB or more"
    tried = [(words, requirements(other, size, given_ranks)) for words, other in _alternatives(cfg, lacking)]
    fitting = {n.stage for n in requirements(cfg, size, given_ranks) if fits([n], kinds)} | {lacking.stage}
    able = [words for words, needs in tried if fits(needs, kinds)]
    # Where another stage lacks room too, it is told next; what helps this one must not break those that fit.
    able = able or [words for words, needs in tried if fits([n for n in needs if n.stage in fitting], kinds)]
    remedies: list[str] = []
    for words in able:
        if len(remedies) < 3 and not any(
            _changed(done) <= _changed(words) for done in remedies
        ):  # not more of what would do already
            remedies.append(words)
    return f"Set {', or '.join(remedies)}, or take {larger}" if remedies else f"Take {larger}"


def _changed(words: str) -> set[str]:
    return {word.partition("=")[0] for word in words.split()}


def _alternatives(cfg: StudyConfig, lacking: Needs) -> list[tuple[str, StudyConfig]]:
    """(words, the configuration with them), the fewest changes first."""
    alternatives = []
    for narrow, held in _unchanged_or(cfg, _narrow(cfg)):
        for shared, split in _unchanged_or(
            held, filter(None, (_sharded(held, ranks) for ranks in (2, 4, 8)))
        ):
            for moved, apart in _unchanged_or(split, _offloaded(split)):
                for fewer, least in _unchanged_or(apart, _smaller(apart, lacking.stage)):
                    alternatives.append((" ".join(filter(None, (fewer, narrow, shared, moved))), least))
    return sorted(alternatives[1:], key=lambda words_and_cfg: len(words_and_cfg[0].split()))


def _unchanged_or(
    cfg: StudyConfig, changed: Iterable[tuple[str, StudyConfig]]
) -> list[tuple[str, StudyConfig]]:
    return [("", cfg), *changed]


def _narrow(cfg: StudyConfig) -> Iterator[tuple[str, StudyConfig]]:
    if cfg.model.weights == "fp32" and not cfg.model.offloads_to_files:
        yield "model.weights=bf16", replace(cfg, model=replace(cfg.model, weights="bf16"))


def _offloaded(cfg: StudyConfig) -> Iterator[tuple[str, StudyConfig]]:
    if cfg.model.sharding == "zero3" and cfg.model.offload == "none" and cfg.gangs.gpus_per_gang:
        yield "model.offload=cpu", replace(cfg, model=replace(cfg.model, offload="cpu"))


def _sharded(cfg: StudyConfig, ranks: int) -> tuple[str, StudyConfig] | None:
    """The model shared by so many ranks, each with a GPU where gangs have any."""
    if ranks <= cfg.gangs.ranks:
        return None
    gpus = ranks if cfg.gangs.gpus_per_gang else 0
    words = f"model.sharding=zero3 gangs.ranks={ranks}" + (f" gangs.gpus_per_gang={gpus}" if gpus else "")
    gangs = replace(cfg.gangs, ranks=ranks, gpus_per_gang=gpus)
    try:
        return words, replace(cfg, model=replace(cfg.model, sharding="zero3"), gangs=gangs)
    except ConfigError:
        return None


def _halved(number: int, least: int) -> Iterator[int]:
    """A half of it, a quarter and so on, until `least` is reached."""
    while number > least:
        number //= 2
        yield number


def _smaller(cfg: StudyConfig, stage: str) -> Iterator[tuple[str, StudyConfig]]:
    """The stage with less at once."""
    if stage == "adapt":
        for contexts in _halved(cfg.adapt.batch_contexts, 1):
            fewer = replace(cfg.adapt, batch_contexts=contexts)
            yield f"adapt.batch_contexts={contexts}", replace(cfg, adapt=fewer)
    if stage == "harvest":
        for contexts in _halved(cfg.corpus.contexts_per_unit, 1):
            smaller = replace(cfg.corpus, contexts_per_unit=contexts)
            yield f"corpus.contexts_per_unit={contexts}", replace(cfg, corpus=smaller)
        if len(cfg.adapt.ranks) > 1 and not cfg.adapters:
            few = replace(cfg.adapt, ranks=cfg.adapt.ranks[:1], seeds=1)
            yield f"adapt.ranks=[{few.ranks[0]}] adapt.seeds=1", replace(cfg, adapt=few)
    if stage == "fit":
        if cfg.storage.deltas == "stored":
            yield "storage.deltas=stream", replace(cfg, storage=replace(cfg.storage, deltas="stream"))
        for batch in _halved(cfg.fit.batch_tokens, 128):
            yield f"fit.batch_tokens={batch}", replace(cfg, fit=replace(cfg.fit, batch_tokens=batch))
