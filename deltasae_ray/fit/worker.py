"""What a fit worker does: window by window, one read per (source, layer) and every dictionary of it, each
resumed from its own checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import groupby

import torch

from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.fit import stacks
from deltasae_ray.fit.fitting import FAILED, MANIFEST, FitJob, Fitting, steps_behind
from deltasae_ray.fit.memory import machine_bytes
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.windows import Reading, Resident, WindowRows
from deltasae_ray.sae.peers import Peers
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.spool import wait_until_ready
from deltasae_ray.storage import Storage


def groups(points: Sequence[FitPoint]) -> list[list[FitPoint]]:
    """Points that share a read: same source and layer, in a fixed order."""
    return [list(group) for _, group in groupby(sorted(points), key=lambda p: (p.adapter, p.layer))]


def fit_share(
    job: FitJob, rank: int, world: int, device: str, peers: Peers | None = None, memory: int | None = None
) -> None:
    """Fits every `world`-th group of the job, by itself or together with `peers`, of whom the first writes:
    each window of a stream as soon as its board says that it is complete. Dictionaries of one shape train
    stacked where that is faster.

    Ends early where a stream was stopped. A point whose rows cannot be fitted is written down and the others
    go on: another attempt would end the same, while what is wrong with a machine or a disk is raised, for Ray
    Train to try again.

    Args:
        memory: bytes that this worker may use; all of the machine's where it is not said.
    """
    kept = open_harvest(job.storage, job.harvest_key)
    sources = {name: kept.source(name).digest for name in {p.adapter for p in job.points}}
    keys = {p: p.key(job.harvest_key, sources, job.cfg) for p in job.points}
    dealt = [p for group in groups(job.points)[rank::world] for p in group]
    resident = Resident(kept)
    for window in job.taken:
        # the first window is there before any work begins
        if window.index and not _all_ready(
            wait_until_ready(job.storage, job.spool, window.index), device, peers
        ):
            return
        left = [p for p in dealt if steps_behind(job.storage, keys[p], job.cfg.steps) < window.ends]
        if not left:
            continue
        # evaluation rows that cannot be used are to fail early, in the first window
        evaluated = not window.index or window.ends >= job.cfg.steps
        reading = Reading.open(job.storage, resident, window, evaluated=evaluated)
        size = stacks.sizes(left, job.cfg, kept.d_model, reading.num_bytes, memory or machine_bytes(), device)
        for held in stacks.held_together(groups(left), size):
            resident.keep({(p.adapter, p.layer) for p in held})
            rows = cache(reading.rows)

            def fitting_of(p: FitPoint, rows: Callable[[str, int], WindowRows] = rows) -> Fitting:
                return Fitting(job, p, keys[p], rows(p.adapter, p.layer), device, peers)

            stacks.fit(held, job.cfg, size, fitting_of, partial(note_failure, job.storage, keys, peers))
            del rows, fitting_of  # a worker that waits for its next window holds no rows of this one


def _all_ready(here: bool, device: str, peers: Peers | None) -> bool:
    """Whether all peers saw the window complete: one that went on alone would wait for the others in its
    first sum.

    None of them goes on before all are here, either: it would read a checkpoint that the writing one has not
    replaced yet.
    """
    if peers is None:
        return here
    seen = torch.tensor([float(here)], device=device)
    peers.sum(seen)
    return float(seen) == peers.world


def note_failure(
    storage: Storage, keys: Mapping[FitPoint, str], peers: Peers | None, point: FitPoint, error: DeltaSaeError
) -> None:
    """Writes down that a point's rows cannot be fitted; of peers, the first does."""
    if not (peers and peers.rank):
        storage.write_json(
            f"{keys[point]}/{FAILED}", {"type": type(error).__name__, "message": f"{point}: {error}"}
        )


def fit_rounds(job: FitJob, device: str, memory: int | None = None) -> Iterator[tuple[int, float]]:
    """Fits all points of the job in lock step, so that the whole job can be judged and stopped early; all of
    their rows are held.

    Yields:
        (optimizer steps, FVU meaned over the points): of the training rows after each round of
        `checkpoint_every` steps, and last, with all manifests written, of the rows that they are judged by.

    Raises:
        DictionaryError, PrecisionError: rows that cannot be fitted.
    """
    shards = open_harvest(job.storage, job.harvest_key)
    sources = {name: shards.source(name).digest for name in {p.adapter for p in job.points}}
    keys = {p: p.key(job.harvest_key, sources, job.cfg) for p in job.points}
    done = {p for p in keys if job.storage.exists(f"{keys[p]}/{MANIFEST}")}
    fvus = [job.storage.read_json(f"{keys[p]}/{MANIFEST}")["metrics"]["fvu"] for p in keys if p in done]
    (window,) = job.taken
    reading = Reading.open(job.storage, Resident(shards), window, evaluated=True)
    rows = cache(reading.rows)
    missing = [p for p in keys if p not in done]
    size = stacks.sizes(
        missing, job.cfg, shards.d_model, reading.num_bytes, memory or machine_bytes(), device
    )
    together = [
        [Fitting(job, p, keys[p], rows(p.adapter, p.layer), device) for p in points]
        for points in stacks.of_one_recipe(missing, job.cfg, size)
    ]
    fittings = [f for stack in together for f in stack]
    while any(not f.trainer.done for f in fittings):
        for stack in together:
            for _, error in stacks.advance(stack):
                raise error
        curves = [f.trainer.curve for f in fittings]
        if all(curves) and not all(f.trainer.done for f in fittings):
            yield min(f.trainer.steps_done for f in fittings), sum(c[-1]["fvu"] for c in curves) / len(curves)
    fvus += [held.fvu for f in fittings if (held := f.finish())]
    yield job.cfg.steps, sum(fvus) / len(fvus)
