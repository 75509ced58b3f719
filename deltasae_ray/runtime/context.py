"""What every stage needs that runs the model over text, and how a stage keeps what it has made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.attached import load_with_adapters
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import base_of
from deltasae_ray.progress import Bar
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.storage import Storage

K = TypeVar("K")


@dataclass(frozen=True)
class StageContext:
    """Where a stage stores, which model it runs, over which text, and on which gangs."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    """Of the driver's model: a node that has another one refuses."""
    corpus: Corpus
    gangs: GangConfig


Passes = Callable[[nn.Module, TokenBatch], list[dict]]
"""Forward passes of one unit: (model, unit) → a row for each of its documents."""


@dataclass(frozen=True)
class PassesFactory:
    """Makes a rank's worker, which runs the same passes on every unit; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    adapters: tuple[AdapterRef, ...]
    prepare: Callable[[], Passes]
    """Loads what the passes need beside the model; runs once per rank."""

    def __call__(self, rank: RankContext) -> "PassesWorker":
        return PassesWorker(self, rank)


class PassesWorker:
    """Runs the passes on a unit: every block of the model, the language-model head, and the adapters."""

    def __init__(self, job: PassesFactory, rank: RankContext) -> None:
        self._model = load_with_adapters(
            job.storage,
            job.model,
            job.adapters,
            rank.device,
            deepest=None,
            digest=job.model_digest,
            root=base_of,
        )
        self._passes = job.prepare()

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> list[dict]:  # noqa: ARG002 - what gangs call
        return self._passes(self._model, unit)


def run_passes(
    context: StageContext,
    adapters: Sequence[AdapterRef],
    units: Sequence[TokenBatch],
    prepare: Callable[[], Passes],
    bar: str,
) -> list[dict]:
    """Runs passes on every unit, on the context's gangs, and returns the rows of all.

    Args:
        prepare: picklable; makes the passes on each rank.
        bar: name of the progress bar.

    Raises:
        DeltaSaeError: what a worker raised on purpose.
    """
    factory = PassesFactory(context.storage, context.model, context.model_digest, tuple(adapters), prepare)
    rows: list[dict] = []
    with Bar(len(units), bar, "units") as progress:
        for _, found in run_units([(unit, None) for unit in units], factory, context.gangs):
            rows += found
            progress.update()
    return rows


def remembered(
    storage: Storage, keys: Mapping[K, str], make: Callable[[list[K]], Mapping[K, dict]]
) -> dict[K, dict]:
    """Reads what is stored under each item's key; what is missing is made and stored first, all of it in one
    call.

    Args:
        keys: item → JSON file below the root, named by all that its content depends on.
        make: items that are missing → what is to be stored of each.
    """
    if missing := [item for item, key in keys.items() if not storage.exists(key)]:
        for item, value in make(missing).items():
            storage.write_json(keys[item], value)
    return {item: storage.read_json(key) for item, key in keys.items()}
