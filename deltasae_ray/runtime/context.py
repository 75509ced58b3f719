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


Step = Callable[[nn.Module, TokenBatch, Any], Any]
"""What is done with a unit: (model with its adapters, unit, todo) → a small result that JSON can hold."""
Passes = Callable[[nn.Module, TokenBatch], list[dict]]
"""Forward passes of one unit: (model, unit) → a row for each of its documents."""


@dataclass(frozen=True)
class StepFactory:
    """Makes a rank's worker, which does the same with every unit; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    adapters: tuple[AdapterRef, ...]
    prepare: Callable[[], Step]
    """Loads what the step needs beside the model; runs once per rank."""

    def __call__(self, rank: RankContext) -> "StepWorker":
        return StepWorker(self, rank)


class StepWorker:
    """Does a step with a unit: every block of the model, the language-model head, and the adapters."""

    def __init__(self, job: StepFactory, rank: RankContext) -> None:
        self._model = load_with_adapters(
            job.storage,
            job.model,
            job.adapters,
            rank.device,
            deepest=None,
            digest=job.model_digest,
            root=base_of,
        )
        self._step = job.prepare()

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> Any:  # noqa: ARG002 - what gangs call
        return self._step(self._model, unit, todo)


def run_steps(
    context: StageContext,
    adapters: Sequence[AdapterRef],
    work: Sequence[tuple[TokenBatch, Any]],
    prepare: Callable[[], Step],
    bar: tuple[str, str],
) -> list[Any]:
    """Does a step with every (unit, todo), on the context's gangs, and returns the results.

    Args:
        prepare: picklable; makes the step on each rank.
        bar: name of the progress bar, and what it counts.

    Raises:
        DeltaSaeError: what a worker raised on purpose.
    """
    factory = StepFactory(context.storage, context.model, context.model_digest, tuple(adapters), prepare)
    results: list[Any] = []
    with Bar(len(work), *bar) as progress:
        for _, result in run_units(work, factory, context.gangs):
            results.append(result)
            progress.update()
    return results


@dataclass(frozen=True)
class _WithoutTodo:
    prepare: Callable[[], Passes]

    def __call__(self) -> Step:
        passes = self.prepare()
        return lambda model, unit, _: passes(model, unit)


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
    work = [(unit, None) for unit in units]
    return [
        row
        for rows in run_steps(context, adapters, work, _WithoutTodo(prepare), (bar, "units"))
        for row in rows
    ]


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
