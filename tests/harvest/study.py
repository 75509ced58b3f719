"""A tiny harvest."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import Corpus, build_corpus
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.harvest.run import Harvest, harvest
from deltasae_ray.hookpoints import resolve
from deltasae_ray.models.adapters import import_adapter
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model, load_tokenizer
from deltasae_ray.models.source import resolve_model
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.gang import RankContext, WorkerFactory
from deltasae_ray.runtime.units import Work
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage

CORPUS = CorpusConfig(context_len=24, fit_tokens=700, eval_tokens=350, contexts_per_unit=2)


@cache
def corpus(model: Path) -> Corpus:
    return build_corpus(CORPUS, load_tokenizer(model))


def run(
    root: Path | str,
    model: Path,
    adapters: list[Path],
    *,
    layers: tuple[int, ...] = (1, 2),
    ranks: int = 1,
    gpus: int = 0,
    random_lora: bool = True,
    **cfg: Any,
) -> Harvest:
    """A harvest of the tiny corpus, by one gang; `cfg` are fields of HarvestConfig."""
    storage = Storage(str(root))
    model_cfg = ModelConfig(base=str(model), sharding="zero3" if ranks > 1 else "none")
    source = resolve_model(model_cfg)
    empty = empty_model(model)
    refs = [import_adapter(storage, folder, folder.name, empty) for folder in adapters]
    gangs = GangConfig(ranks=ranks, gpus_per_gang=gpus)
    hookpoints = resolve(layers, source.num_layers)
    return harvest(
        StageContext(storage, model_cfg, source.digest, corpus(model), gangs),
        source,
        HarvestConfig(**cfg),
        refs,
        hookpoints,
        random_lora=random_lora,
    )


def replace_run_units(monkeypatch: pytest.MonkeyPatch, instead: Callable[..., Any]) -> None:
    """Runs a harvest's units, and those that measure its sources, by `instead`."""
    for module in ("run", "sources"):
        monkeypatch.setattr(
            f"deltasae_ray.harvest.{module}.run_units",
            lambda work, factory, gangs, **_: instead(work, factory, gangs),
        )


def run_units_here(
    work: Work,
    factory: WorkerFactory,
    cfg: GangConfig,
    device: str = "cpu",
    **_: Any,  # which part of the work a unit is: of progress alone
) -> Iterator[tuple[str, Any]]:
    """What `gangs.run.run_units` does, in this process and without Ray: for tests of what is run, which do
    not care where."""
    assert cfg.ranks == 1
    if len(work):
        worker = factory(RankContext(0, 1, device))
        for unit, todo in work:
            yield (
                unit.name,
                json.loads(
                    json.dumps(worker(unit, json.loads(json.dumps(todo)), keep=True), allow_nan=False)
                ),
            )


def hashes(root: Path | str, key: str) -> dict[tuple, str]:
    """Unit, source and hookpoints → sha256, of every shard that counts."""
    return {row.identity: row.sha256 for row in Manifest.load(Storage(str(root)), key).rows}
