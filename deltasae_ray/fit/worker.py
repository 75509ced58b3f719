"""What a fit worker does: one read per (source, layer), every dictionary of it, each resumed from its own
checkpoint."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from deltasae_ray import heartbeat
from deltasae_ray.errors import DeltaSaeError, DictionaryError
from deltasae_ray.fit import checkpoint, stacks
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.memory import machine_bytes
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.rows import Rows, Tokens
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.metrics import RATE_EDGES, HeldOut, held_out
from deltasae_ray.sae.peers import Peers
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage, digest, file_sha256

MANIFEST = "manifest.json"
"""Written last into a dictionary's folder; makes it count."""
FAILED = "failed.json"
"""Written instead where the rows, not the machine, are at fault."""


@dataclass(frozen=True)
class FitJob:
    """Points that one Ray Train run fits; travels to every worker."""

    storage: Storage
    harvest_key: str
    points: tuple[FitPoint, ...]
    cfg: FitConfig


def groups(points: Sequence[FitPoint]) -> list[list[FitPoint]]:
    """Points that share a read: same source and layer, in a fixed order."""
    return [list(group) for _, group in groupby(sorted(points), key=lambda p: (p.adapter, p.layer))]


def fit_share(
    job: FitJob, rank: int, world: int, device: str, peers: Peers | None = None, memory: int | None = None
) -> None:
    """Fits every `world`-th group of the job, by itself or together with `peers`, of whom the first writes.
    Dictionaries of one shape train stacked where that is faster.

    A point whose rows cannot be fitted is written down and the others go on: another attempt would end the
    same, while what is wrong with a machine or a disk is raised, for Ray Train to try again.

    Args:
        memory: bytes that this worker may use; all of the machine's where it is not said.
    """
    shards = open_harvest(job.storage, job.harvest_key)
    sources = {name: shards.source(name).digest for name in {p.adapter for p in job.points}}
    keys = {
        p: p.key(job.harvest_key, sources, job.cfg)
        for group in groups(job.points)[rank::world]
        for p in group
    }
    missing = [p for p in keys if not job.storage.exists(f"{keys[p]}/{MANIFEST}")]
    if not missing:
        return
    tokens = Tokens.read(shards)
    size = stacks.sizes(
        missing, job.cfg, shards.d_model, tokens.num_bytes(shards.d_model), memory or machine_bytes(), device
    )
    for held in stacks.held_together(groups(missing), size):
        rows = cache(partial(Rows.read, shards, tokens))

        def made(p: FitPoint, rows: Callable[[str, int], Rows] = rows) -> Fitting:
            return Fitting(job, p, keys[p], rows(p.adapter, p.layer), device, peers)

        stacks.fit(held, job.cfg, size, made, partial(note_failure, job.storage, keys, peers))


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
    tokens = Tokens.read(shards)
    rows = cache(partial(Rows.read, shards, tokens))
    missing = [p for p in keys if p not in done]
    size = stacks.sizes(
        missing, job.cfg, shards.d_model, tokens.num_bytes(shards.d_model), memory or machine_bytes(), device
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


class Fitting:
    """One dictionary in the making: from its last checkpoint on, and a new checkpoint every
    `checkpoint_every` steps."""

    def __init__(
        self, job: FitJob, point: FitPoint, key: str, rows: Rows, device: str, peers: Peers | None = None
    ) -> None:
        chosen = rows.training(point)
        self.job, self.point, self.key, self.rows = job, point, key, rows
        self.check_size(len(chosen))
        self.writes = peers is None or peers.rank == 0
        self.trainer = Trainer(chosen, point.recipe(job.cfg), point.seed, device, peers)
        self.end = job.cfg.steps
        state = checkpoint.read(job.storage, key)
        if state is not None:
            self.trainer.load_state_dict(state)
        self.noted: dict[str, Any] = {} if state is None else state.get("note", {})

    def check_size(self, rows: int) -> None:
        """Raises DictionaryError where there are fewer training rows than latents, or a search has none to
        judge by."""
        if self.point.documents == "search" and not len(self.rows.judging(self.point)):
            raise DictionaryError(
                "no document of the fit split is left to judge settings by: give more documents, or set"
                " fit.search=none"
            )
        if rows < self.point.d_sae:
            raise DictionaryError(
                f"{rows} training rows for {self.point.d_sae} latents: raise corpus.fit_tokens or lower"
                " fit.d_sae"
            )

    @property
    def through(self) -> bool:
        """Whether it has taken all steps that it takes on these rows."""
        return self.trainer.steps_done >= self.end

    def advance(self) -> None:
        """Trains up to the next checkpoint, or to the end."""
        trainer, every = self.trainer, self.job.cfg.checkpoint_every
        while not self.through:
            with heartbeat.unit("step"):
                trainer.step()
            if trainer.steps_done % every == 0:
                break
        if self.writes and not trainer.done:
            self.keep()

    def keep(self) -> None:
        """Writes a checkpoint."""
        with heartbeat.unit("checkpoint"):
            checkpoint.write(self.job.storage, self.key, self.trainer.state_dict())

    def finish(self) -> HeldOut | None:
        """Writes the folder, and last the manifest that makes it count; the held-out figures, or None from a
        peer that does not write."""
        if not self.writes:
            return None
        with heartbeat.unit("writing of a dictionary"):
            return self._finish()

    def _finish(self) -> HeldOut:
        point = self.point
        told = {
            "hookpoint": str(Hookpoint(point.layer)),
            "adapter": point.adapter,
            "documents": point.documents,
        }
        dictionary = self.trainer.finish(
            **told, **({} if point.control == "none" else {"control": point.control})
        )
        held = held_out(dictionary, self.rows.judging(point), dictionary.mean)
        _write(self, dictionary, held)
        checkpoint.remove(self.job.storage, self.key)
        return held


def _write(fitting: Fitting, dictionary: Dictionary, held: HeldOut) -> None:
    job, point, key, curve = fitting.job, fitting.point, fitting.key, fitting.trainer.curve
    with tempfile.TemporaryDirectory() as scratch:
        folder = dictionary.save(Path(scratch) / "dictionary")
        hashes = {p.name: file_sha256(p) for p in sorted(folder.iterdir())}
        job.storage.put_folder(folder, key)
    manifest: dict[str, Any] = {
        "point": asdict(point),
        "harvest": job.harvest_key,
        "recipe": asdict(point.recipe(job.cfg)),
        "digest": digest(hashes),
        "sha256": hashes,
        "metrics": held.figures(),
        "firing_rates": {"upper_edges": list(RATE_EDGES), "latents": list(held.rates)},
        "held_out_rows": held.rows,
        "curve": [[p["step"], p["fvu"]] for p in curve],
        "dead": [[p["step"], p["dead"]] for p in curve],
        "rows": dictionary.meta["rows"],
        "dropped_rows": fitting.rows.dropped,
    }
    job.storage.write_json(f"{key}/{MANIFEST}", manifest)
