"""One Ray task a cell: reads the rows of one source at one layer, decides which latents are visible, and
stores the answer under its key."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.task import seen_alive
from deltasae_ray.analyses.leaf_spec import dictionary_digest, figures_digest, load_dictionary, settings_of
from deltasae_ray.analyses.visibility.figures import (
    Asked,
    CellDictionaries,
    CellRows,
    CellVisibility,
    judge_cell,
)
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.errors import StorageError
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage

VISIBILITY_VERSION = 4
"""Part of every key here: raise it when the decision changes, and all is decided again."""


@dataclass(frozen=True)
class CellSpec:
    """One dictionary of one source at one layer, with all that its answer takes."""

    layer: int
    source: str
    """Digest of the adapter among the harvest's sources."""
    dictionary: str
    others: tuple[str, ...]
    """The same recipe on the same deltas, from other seeds."""
    reference: str
    bases: tuple[str, ...]
    asked: Asked = "all"

    def key(self, storage: Storage, shards: ShardSet, cfg: DivergeConfig) -> str:
        """File of the answer, made of the digests of what it depends on."""
        used = (self.dictionary, self.reference, *self.others, "", *self.bases)
        inputs = {
            "visibility": VISIBILITY_VERSION,
            "source": self.source,
            "dictionaries": [key and dictionary_digest(storage, key) for key in used],
            "asked": self.asked,
            "code_tokens": cfg.code_tokens,
        }
        return f"visibility/{figures_digest(shards, self.layer, cfg, inputs)}.json"


@dataclass(frozen=True)
class CellTask:
    """Travels to the task."""

    storage: Storage
    harvest_key: str
    spec: CellSpec
    key: str
    cfg: DivergeConfig


def judge_and_store(task: CellTask) -> None:
    """Decides one cell, and writes the answer."""
    spec, storage = task.spec, task.storage
    rows = read_cell(open_harvest(storage, task.harvest_key), spec)
    with tempfile.TemporaryDirectory() as scratch:
        own, reference, *rest = (
            load_dictionary(storage, key, Path(scratch))
            for key in (spec.dictionary, spec.reference, *spec.others, *spec.bases)
        )
        others, bases = rest[: len(spec.others)], rest[len(spec.others) :]
    known = seen_alive(reference, lambda: rows.base_fit)
    cell = CellDictionaries(own, others, known, bases)
    answer = judge_cell(rows, cell, settings_of(task.cfg), spec.asked, task.cfg.code_tokens)
    storage.write_json(task.key, asdict(answer))


def read_cell(shards: ShardSet, spec: CellSpec) -> CellRows:
    """Rows of the cell's source and of the base, without position 0."""
    fit, evaluation = (shards.tokens(split) for split in ("fit", "eval"))
    keep = {"fit": fit.used, "eval": evaluation.used}
    read = {
        (source, split): shards.read(spec.layer, source, split=split)[kept]
        for source in (spec.source, BASE)
        for split, kept in keep.items()
    }
    corpora = np.asarray(evaluation.corpus[keep["eval"]], dtype=str)
    return CellRows(
        read[spec.source, "fit"],
        read[spec.source, "eval"],
        read[BASE, "fit"],
        read[BASE, "eval"],
        fit.doc_id[keep["fit"]],
        evaluation.doc_id[keep["eval"]],
        tokens=evaluation.token_id[keep["eval"]],
        positions=evaluation.position[keep["eval"]],
        corpora=corpora,
        fit_corpora=np.asarray(fit.corpus[keep["fit"]], dtype=str),
        texts=tuple(sorted(map(str, np.unique(corpora)), key=lambda name: (name != DOMAIN, name))),
    )


def read_answer(storage: Storage, key: str) -> CellVisibility:
    """The answer that is stored under a key.

    Raises:
        StorageError: the file is damaged, or of another version.
    """
    try:
        return msgspec.convert(storage.read_json(key), CellVisibility)
    except (msgspec.ValidationError, AssertionError) as e:
        raise StorageError(f"{storage.path(key)} holds no answer ({e!r}): delete it and run again") from e
