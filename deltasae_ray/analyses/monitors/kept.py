"""Monitors of a study: checked against it before any long work, and kept below the root, where every node
finds them."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltasae_ray.analyses.monitors.folder import FILES, TEXTS, LabelledText, read_monitor, read_texts
from deltasae_ray.analyses.monitors.monitor import Monitor
from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.contexts import Context, group
from deltasae_ray.corpus.pieces import encode
from deltasae_ray.corpus.special import roles_of
from deltasae_ray.errors import MonitorError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.storage import Storage, digest, files_digest


@dataclass(frozen=True)
class MonitorRef:
    """A monitor that lies in the storage."""

    name: str
    key: str
    """Folder below the storage root."""
    hookpoint: Hookpoint
    texts: int
    """Labelled texts; 0 where it has none."""


def keep_monitors(
    storage: Storage,
    folders: Sequence[str],
    d_model: int,
    hookpoints: Sequence[Hookpoint],
    *,
    copy: bool = True,
) -> tuple[MonitorRef, ...]:
    """Checks the user's monitors, and copies them below the root once all are right.

    Args:
        hookpoints: that the study reads.
        copy: False for a plan: nothing is written.

    Raises:
        MonitorError: a folder that is none, another width, a hookpoint that the study does not read, or two
            of one name.
    """
    refs: list[MonitorRef] = []
    kept: list[tuple[str, Path]] = []
    for place in folders:
        folder = Path(place)
        if not folder.is_dir():
            raise MonitorError(f"monitors: {place!r} is no folder")
        monitor = read_monitor(folder)
        _check(monitor, folder, d_model, hookpoints)
        texts = read_texts(folder / TEXTS) if (folder / TEXTS).is_file() else ()
        if any(monitor.name == ref.name for ref in refs):
            raise MonitorError(f"monitors: two are called {monitor.name!r}; rename a folder")
        files = [folder / name for name in FILES if (folder / name).is_file()]
        key = f"monitors/{digest([monitor.name, files_digest(files)])}/{monitor.name}"
        kept += [(f"{key}/{path.name}", path) for path in files]
        refs.append(MonitorRef(monitor.name, key, monitor.hookpoint, len(texts)))
    for key, path in kept if copy else ():
        storage.write_bytes(key, path.read_bytes())
    return tuple(refs)


def cut_notes(folders: Sequence[str], tokenizer: Any, length: int) -> tuple[str, ...]:
    """Checks labelled texts against the tokenizer; says of which monitors some are longer than a context.

    Args:
        folders: that `keep_monitors` has checked.
        length: tokens of a context, BOS not counted.

    Raises:
        MonitorError: a text of which too little is left to be scored.
    """
    notes = []
    for folder in (Path(place) for place in folders):
        texts = read_texts(folder / TEXTS) if (folder / TEXTS).is_file() else ()
        _contexts(str(folder / TEXTS), texts, tokenizer, length)
        cut = sum(len(encode(tokenizer, one.text, length + 1)) > length for one in texts)
        if cut:
            monitor = read_monitor(folder)
            last = ", and it reads the last token" if monitor.reads == "last" else ""
            notes.append(
                f"{cut} of {len(texts)} labelled texts of the monitor {monitor.name} are cut to"
                f" corpus.context_len={length} tokens{last}: raise that to read them whole"
            )
    return tuple(notes)


def _check(monitor: Monitor, folder: Path, d_model: int, hookpoints: Sequence[Hookpoint]) -> None:
    if monitor.d_model != d_model:
        raise MonitorError(
            f"{folder} reads activations of width {monitor.d_model}, and the base model's is {d_model}: it"
            " was made for another model"
        )
    if monitor.hookpoint not in hookpoints:
        at = "" if monitor.hookpoint.site == "resid_post" else " and harvest.sites"
        raise MonitorError(
            f"{folder} reads {monitor.hookpoint}, which this study does not: it reads"
            f" {', '.join(map(str, hookpoints))}. If the base model has it, add its layer to layers{at};"
            " else the monitor was made for another model: leave it out"
        )


def open_monitors(storage: Storage, refs: Sequence[MonitorRef]) -> dict[str, Monitor]:
    """Monitors by name, as they are kept."""
    with tempfile.TemporaryDirectory() as scratch:
        return {
            ref.name: read_monitor(storage.get_folder(ref.key, Path(scratch) / ref.name), ref.name)
            for ref in refs
        }


@dataclass(frozen=True)
class TextSet:
    """Labelled texts as units; monitors with equal texts share them."""

    name: str
    """Digest of the texts, and the corpus of the units."""
    units: tuple[TokenBatch, ...]
    labels: dict[str, bool]
    """By document."""
    monitors: tuple[str, ...]


def open_texts(
    storage: Storage, refs: Sequence[MonitorRef], tokenizer: Any, *, length: int, contexts: int
) -> tuple[TextSet, ...]:
    """The labelled texts of all monitors, each text cut to one context.

    Args:
        length: tokens of a context, BOS not counted.
        contexts: of a unit.

    Raises:
        MonitorError: a text of which nothing is left.
    """
    sets: dict[str, list[str]] = {}
    texts: dict[str, tuple[LabelledText, ...]] = {}
    for ref in refs:
        if ref.texts:
            with tempfile.TemporaryDirectory() as scratch:
                labelled_texts = read_texts(storage.get_folder(ref.key, Path(scratch)) / TEXTS)
            name = f"labelled-{digest([[one.text, one.label] for one in labelled_texts])}"
            sets.setdefault(name, []).append(ref.name)
            texts[name] = labelled_texts
    return tuple(
        TextSet(
            name,
            tuple(group(_contexts(name, texts[name], tokenizer, length), "eval", contexts)),
            {_doc(name, i): one.label for i, one in enumerate(texts[name])},
            tuple(monitors),
        )
        for name, monitors in sorted(sets.items())
    )


def _contexts(name: str, texts: Sequence[LabelledText], tokenizer: Any, length: int) -> list[Context]:
    roles, contexts = roles_of(tokenizer), []
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for i, one in enumerate(texts):
        ids = [t for t in encode(tokenizer, one.text, length) if t not in roles.masked][:length]
        tokens = (*bos, *ids)
        if len(tokens) < 2:
            raise MonitorError(
                f"{name}: the labelled text {one.text[:40]!r} is {len(ids)} tokens long; two are needed, or"
                " one behind BOS"
            )
        contexts.append(Context(name, _doc(name, i), 0, tokens, (False,) * len(tokens)))
    return contexts


def _doc(name: str, index: int) -> str:
    return f"{name}/{index:06d}"


def in_order(rows: Sequence[dict], monitor: str) -> tuple[np.ndarray, np.ndarray]:
    """A monitor's scores of all documents, by document's name, and each score's document from 0 up."""
    ordered = sorted(rows, key=lambda r: r["doc_id"])
    scores = [np.asarray(r["scores"][monitor], dtype=np.float64) for r in ordered]
    return np.concatenate(scores), np.repeat(np.arange(len(scores)), [len(s) for s in scores])
