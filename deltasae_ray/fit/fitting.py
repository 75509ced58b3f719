"""One dictionary in the making: checkpoints, held-out figures, its folder and its manifest.

A checkpoint says how many steps, and so which windows, are behind a dictionary; that is all a later run needs
to know.
"""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltasae_ray import heartbeat
from deltasae_ray.errors import DictionaryError
from deltasae_ray.fit import checkpoint
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.windows import Window, WindowRows, schedule
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.runtime.spot import node_is_leaving
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.metrics import RATE_EDGES, HeldOut, held_out
from deltasae_ray.sae.peers import Peers
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.storage import Storage, digest, file_sha256

MANIFEST = "manifest.json"
"""Written last into a dictionary's folder; makes it count."""


FAILED = "failed.json"
"""Written instead where the rows, not the machine, are at fault."""


@dataclass(frozen=True)
class FitJob:
    """Points that one Ray Train run fits, and to which windows; travels to every worker."""

    storage: Storage
    harvest_key: str
    """What stays: all of a stored harvest, or the first window of a stream, with the evaluation split."""
    points: tuple[FitPoint, ...]
    cfg: FitConfig
    windows: tuple[Window, ...] = ()
    """Windows of a stream that the run takes, in order; empty: the whole harvest is one."""
    spool: str = ""
    """Folder of all windows of the stream but the first."""
    of: int = 1
    """Windows of the whole stream."""

    @property
    def taken(self) -> tuple[Window, ...]:
        """The windows that the run takes."""
        return self.windows or schedule(self.harvest_key, self.spool, (1,), self.cfg.steps)


def steps_behind(storage: Storage, key: str, steps: int) -> int:
    """Optimizer steps of `steps` that the dictionary `key` has behind it; all where it is finished, or cannot
    be fitted."""
    if storage.exists(f"{key}/{MANIFEST}") or storage.exists(f"{key}/{FAILED}"):
        return steps
    return checkpoint.steps_done(storage, key)


class Fitting:
    """One dictionary on one window: from its last checkpoint to the window's end, with a new checkpoint every
    `checkpoint_every` steps."""

    def __init__(
        self,
        job: FitJob,
        point: FitPoint,
        key: str,
        rows: WindowRows,
        device: str,
        peers: Peers | None = None,
    ) -> None:
        self.job, self.point, self.key, self.rows = job, point, key, rows.first
        window, chosen = rows.window, rows.first.training(point)
        self.check_size(len(chosen))
        self.writes = peers is None or peers.rank == 0
        self.trainer = Trainer(chosen, point.recipe(job.cfg), point.seed, device, peers)
        self.end = window.ends
        before = {"rows": 0, "dropped": 0}
        if (state := checkpoint.read(job.storage, key)) is not None:
            self.trainer.load_state_dict(state)
            before = state.get("note") or before
        if window.index:
            chosen = rows.own.training(point)
        if not len(chosen):
            raise DictionaryError(
                f"window {window.index} has no training row of documents {point.documents}: raise"
                " storage.window_tokens"
            )
        assert window.begins <= self.trainer.steps_done <= window.ends, "windows are fitted in order"
        if window.index:
            self.trainer.take_window(chosen, window.begins, before["rows"])
        dropped = before["dropped"] + rows.own.dropped["fit"]
        self._before, self._after = before, {"rows": before["rows"] + len(chosen), "dropped": dropped}
        self.rows = replace(rows.own, dropped={**rows.own.dropped, "fit": dropped})

    def check_size(self, rows: int) -> None:
        """Raises DictionaryError where there are fewer training rows than latents, or a search has none to
        judge by.

        Args:
            rows: of the first window, of which a stream has as many as `job.of`.
        """
        rows *= self.job.of
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
        """Trains up to the next checkpoint, which comes at once where this node is to end, or to the end."""
        trainer, every = self.trainer, self.job.cfg.checkpoint_every
        while not self.through:
            with heartbeat.unit("step"):
                trainer.step()
            if trainer.steps_done % every == 0 or node_is_leaving():
                break
        if self.writes and not trainer.done:
            self.keep()

    def keep(self) -> None:
        """Writes a checkpoint, which notes how many rows the windows held that are behind it, for the
        manifest."""
        note = self._after if self.trainer.steps_done == self.end else self._before
        state: dict[str, Any] = {**self.trainer.state_dict(), "note": note}
        with heartbeat.unit("checkpoint"):
            checkpoint.write(self.job.storage, self.key, state)

    def finish(self) -> HeldOut | None:
        """Writes the folder, and last the manifest that makes it count; the held-out figures, or None from a
        peer that does not write."""
        if not self.writes:
            return None
        with heartbeat.unit("writing of a dictionary"):
            return self._finish()

    def _finish(self) -> HeldOut:
        point = self.point
        facts = {
            "hookpoint": str(Hookpoint(point.layer)),
            "adapter": point.adapter,
            "documents": point.documents,
        }
        dictionary = self.trainer.finish(
            **facts, **({} if point.control == "none" else {"control": point.control})
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
