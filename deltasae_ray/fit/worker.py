"""What a fit worker does: one read per (source, layer), every dictionary of it, each resumed from its own checkpoint."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltasae_ray.errors import DeltaSaeError, DictionaryError, PrecisionError
from deltasae_ray.fit import checkpoint, stacks
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.featureless import gaussian_rows
from deltasae_ray.fit.points import FitPoint, in_documents
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.metrics import RATE_EDGES, HeldOut, held_out
from deltasae_ray.sae.peers import Peers
from deltasae_ray.sae.recipe import finite_rows
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage, digest, file_sha256

log = logging.getLogger(__name__)
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


def fit_share(job: FitJob, rank: int, world: int, device: str, peers: Peers | None = None) -> None:
    """Fits every `world`-th group of the job, by itself or together with `peers`, of whom the first writes. Dictionaries of one shape train
    stacked where that is faster.

    A point whose rows cannot be fitted is written down and the others go on: another attempt would end the same, while what
    is wrong with a machine or a disk is raised, for Ray Train to try again.
    """
    shards = open_harvest(job.storage, job.harvest_key)
    sources = {name: shards.source(name).digest for name in {p.adapter for p in job.points}}
    keys = {p: p.key(job.harvest_key, sources, job.cfg) for group in groups(job.points)[rank::world] for p in group}
    missing = [p for p in keys if not job.storage.exists(f"{keys[p]}/{MANIFEST}")]
    if not missing:
        return
    tokens = Tokens.read(shards)

    def fail(point: FitPoint, error: DeltaSaeError) -> None:
        if not (peers and peers.rank):
            job.storage.write_json(f"{keys[point]}/{FAILED}", {"type": type(error).__name__, "message": f"{point}: {error}"})

    size = stacks.sizes(missing, job.cfg, shards.d_model, tokens.num_bytes(shards.d_model), device)
    size = dict.fromkeys(size, 1) if peers else size
    for held in stacks.held_together(groups(missing), size):
        rows = cache(partial(Rows.read, shards, tokens))
        for points in stacks.of_one_recipe(held, job.cfg, size):
            fittings = []
            for p in points:
                try:
                    fittings.append(Fitting(job, p, keys[p], rows(p.adapter, p.layer), device, peers))
                except (DictionaryError, PrecisionError) as e:
                    fail(p, e)
            for fitting, error in stacks.fit_to_the_end(fittings):
                fail(fitting.point, error)


def fit_rounds(job: FitJob, device: str) -> Iterator[tuple[int, float]]:
    """Fits all points of the job in lock step, so that the whole job can be judged and stopped early.

    Yields:
        (optimizer steps, FVU meaned over the points): of the training rows after each round of `checkpoint_every` steps, and last,
        with all manifests written, of the held-out rows.

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
    size = stacks.sizes(missing, job.cfg, shards.d_model, tokens.num_bytes(shards.d_model), device)
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


@dataclass(frozen=True, eq=False)
class Tokens:
    """What every read of a harvest shares: which rows are used (position 0, BOS, is not), and of which document each is."""

    used: dict[str, np.ndarray]
    """Split → bool [token]."""
    fit_docs: np.ndarray
    """object [used token]"""

    @classmethod
    def read(cls, shards: ShardSet) -> "Tokens":
        tables = {split: shards.tokens(split) for split in ("fit", "eval")}
        used = {split: table.position > 0 for split, table in tables.items()}
        return cls(used, tables["fit"].doc_id[used["fit"]])

    def num_bytes(self, d_model: int) -> int:
        """Of the rows of one read."""
        return 4 * d_model * sum(map(len, self.used.values()))


@dataclass(frozen=True, eq=False)
class Rows:
    """One read: a source's rows at a hookpoint, position 0 (BOS) left out."""

    fit: np.ndarray
    """float32 [token, d_model]"""
    fit_docs: np.ndarray
    evaluation: np.ndarray
    dropped: dict[str, int]
    """Split → rows with NaN or infinity that were left out."""
    source: str
    """Digest of the source that they are of."""

    @classmethod
    def read(cls, shards: ShardSet, tokens: Tokens, adapter: str, layer: int, *, evaluated: bool = True) -> "Rows":
        """evaluated: with the evaluation rows, which only a dictionary that is finished needs."""
        fit, fit_kept = usable_rows(shards, tokens, adapter, layer, "fit")
        evaluation, kept = usable_rows(shards, tokens, adapter, layer, "eval") if evaluated else (fit[:0], fit_kept[:0])
        dropped = {"fit": int((~fit_kept).sum()), "eval": int((~kept).sum())}
        if any(dropped.values()):
            log.warning("%s layer %d: rows with NaN or infinity are left out: %s", adapter, layer, dropped)
        docs, source = tokens.fit_docs, shards.source(adapter).digest
        if any(dropped.values()):  # no second copy of the rows where there is nothing to leave out
            fit, docs, evaluation = fit[fit_kept], docs[fit_kept], evaluation[kept]
        return cls(fit, docs, evaluation, dropped, source)

    def training(self, point: FitPoint) -> torch.Tensor:
        """The rows [token, d_model] that a point is fitted to."""
        chosen = torch.from_numpy(self.fit if point.documents == "all" else self.fit[in_documents(self.fit_docs, point.documents)])
        if point.control != "gaussian":
            return chosen
        # Seeded by what the rows are of, not by the dictionary: every size and architecture is fitted to the same draw.
        return gaussian_rows(chosen, int(digest(["gaussian", self.source, str(Hookpoint(point.layer)), point.seed])[:15], 16))


def usable_rows(shards: ShardSet, tokens: Tokens, adapter: str, layer: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows without position 0, which of them are finite). Raises PrecisionError where too many are not, DictionaryError for none."""
    rows = shards.read(layer, adapter, split=split)[tokens.used[split]]
    if not len(rows):
        raise DictionaryError(f"there are no {split} tokens beyond position 0: raise corpus.{split}_tokens")
    try:
        return rows, finite_rows(torch.from_numpy(rows)).numpy()
    except PrecisionError as e:
        raise PrecisionError(f"{adapter} layer {layer}, split {split}: {e}") from e


class Fitting:
    """One dictionary in the making: from its last checkpoint on, and a new checkpoint every `checkpoint_every` steps."""

    def __init__(self, job: FitJob, point: FitPoint, key: str, rows: Rows, device: str, peers: Peers | None = None) -> None:
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
        """Raises DictionaryError where there are fewer training rows than latents."""
        if rows < self.point.d_sae:
            raise DictionaryError(f"{rows} training rows for {self.point.d_sae} latents: raise corpus.fit_tokens or lower fit.d_sae")

    def advance(self) -> None:
        """Trains up to the next checkpoint, or to the end."""
        trainer, every = self.trainer, self.job.cfg.checkpoint_every
        while trainer.steps_done < self.end:
            trainer.step()
            if trainer.steps_done % every == 0:
                break
        if self.writes and not trainer.done:
            self.keep()

    def keep(self) -> None:
        """Writes a checkpoint."""
        checkpoint.write(self.job.storage, self.key, self.trainer.state_dict())

    def finish(self) -> HeldOut | None:
        """Writes the folder, and last the manifest that makes it count; the held-out figures, or None from a peer that does not write."""
        if not self.writes:
            return None
        point = self.point
        told = {"hookpoint": str(Hookpoint(point.layer)), "adapter": point.adapter, "documents": point.documents}
        dictionary = self.trainer.finish(**told, **({} if point.control == "none" else {"control": point.control}))
        held = held_out(dictionary, self.rows.evaluation, dictionary.mean)
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
