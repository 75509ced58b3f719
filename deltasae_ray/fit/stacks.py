"""Which dictionaries train together, and what becomes of each: checkpoints, manifests and errors stay its
own."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from deltasae_ray import heartbeat
from deltasae_ray.errors import DeltaSaeError, DictionaryError, PrecisionError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.fitting import Fitting
from deltasae_ray.fit.memory import HELD
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.runtime.spot import node_is_leaving
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.stacked import at_once, together, train_together


def sizes(
    points: Sequence[FitPoint],
    cfg: FitConfig,
    d_model: int,
    num_bytes: int,
    memory: int,
    device: torch.device | str,
) -> dict[Recipe, int]:
    """Recipe → how many dictionaries of it are best trained together, each on rows of up to `num_bytes`, by a
    worker that has `memory` bytes. One, where peers share the batches: such dictionaries are too large for
    one worker, whose product fills it without a stack.
    """
    if cfg.layout == "ddp" and cfg.workers > 1:
        return {p.recipe(cfg): 1 for p in points}
    share = min(1.0, cfg.gpus_per_worker or 1.0)  # of an accelerator that several workers are on
    room = max(1, int(HELD * memory) // max(1, num_bytes))
    return {
        recipe: min(room, at_once(recipe, d_model, device, share))
        for recipe in {p.recipe(cfg) for p in points}
    }


def held_together(
    reads: Sequence[Sequence[FitPoint]], size: Mapping[Recipe, int]
) -> Iterator[list[FitPoint]]:
    """Points whose reads are held in memory at once: those of one read where nothing is stacked."""
    most = max(size.values())
    for i in range(0, len(reads), most):
        yield [p for read in reads[i : i + most] for p in read]


def of_one_recipe(
    points: Sequence[FitPoint], cfg: FitConfig, size: Mapping[Recipe, int]
) -> Iterator[list[FitPoint]]:
    """Stacks of at most as many as `size` allows."""
    alike: dict[Recipe, list[FitPoint]] = {}
    for p in points:
        alike.setdefault(p.recipe(cfg), []).append(p)
    for recipe, members in alike.items():
        yield from (members[i : i + size[recipe]] for i in range(0, len(members), size[recipe]))


def fit(
    points: Sequence[FitPoint],
    cfg: FitConfig,
    size: Mapping[Recipe, int],
    make: Callable[[FitPoint], Fitting],
    fail: Callable[[FitPoint, DeltaSaeError], None],
) -> None:
    """Makes and trains the dictionaries of points whose reads are held, stack by stack. `fail` is told which
    cannot be fitted, and why."""
    for stack in of_one_recipe(points, cfg, size):
        fittings = []
        for point in stack:
            try:
                fittings.append(make(point))
            except (DictionaryError, PrecisionError) as e:
                fail(point, e)
        for fitting, error in fit_to_the_end(fittings):
            fail(fitting.point, error)


def fit_to_the_end(stack: Sequence[Fitting]) -> Iterator[tuple[Fitting, DeltaSaeError]]:
    """Trains all of a stack as far as these rows go, and finishes what has taken its last step; gives those
    that cannot be fitted, with the error.
    """
    going = list(stack)
    while any(not f.through for f in going):
        for lost, error in advance(going):
            going.remove(lost)
            yield lost, error
    for fitting in going:
        try:
            if fitting.trainer.done:
                fitting.finish()
        except (DictionaryError, PrecisionError) as e:
            yield fitting, e


def advance(stack: Sequence[Fitting]) -> list[tuple[Fitting, DictionaryError]]:
    """Takes a stack to its next checkpoint or its end; gives those whose training ran off to infinity, with
    the error.

    Rows may be too few for a whole batch: then not all of one shape can step together, and each such part
    goes by itself.
    """
    waiting, lost = [f for f in stack if not f.through], []
    while waiting:
        alike = [f for f in waiting if f is waiting[0] or together(waiting[0].trainer, f.trainer)]
        waiting = [f for f in waiting if f not in alike]
        furthest = max(f.trainer.steps_done for f in alike)
        behind = [f for f in alike if f.trainer.steps_done < furthest]
        if behind or len(alike) == 1:
            # A kill while a round's checkpoints were written leaves members behind: they catch up alone, and
            # the others wait.
            lost += [failed for f in behind or alike if (failed := _alone(f))]
        else:
            lost += _stacked(alike)
    return lost


def _alone(fitting: Fitting) -> tuple[Fitting, DictionaryError] | None:
    try:
        fitting.advance()
    except DictionaryError as e:
        return fitting, e
    return None


def _stacked(alike: Sequence[Fitting]) -> list[tuple[Fitting, DictionaryError]]:
    every, taken = alike[0].job.cfg.checkpoint_every, alike[0].trainer.steps_done
    with heartbeat.unit(f"step of {len(alike)} dictionaries"):
        errors = train_together(
            [f.trainer for f in alike], min(every - taken % every, alike[0].end - taken), node_is_leaving
        )
    for fitting, error in zip(alike, errors, strict=True):
        if error is None and not fitting.trainer.done:
            fitting.keep()
    return [(f, error) for f, error in zip(alike, errors, strict=True) if error is not None]
