"""One Ray task for some cells of a layer: reads their rows, decides which latents are visible, and stores
each answer under its key."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
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
    base_side,
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
class CellGroup:
    """Cells of one layer and one base side; travels to the task."""

    storage: Storage
    harvest_key: str
    specs: tuple[CellSpec, ...]
    keys: tuple[str, ...]
    """Files of their answers, in the same order."""
    cfg: DivergeConfig


def judge_and_store(group: CellGroup) -> None:
    """Decides one cell after the other, and writes each answer; the base's side is computed once."""
    storage, settings = group.storage, settings_of(group.cfg)
    shards, reference, side = open_harvest(storage, group.harvest_key), group.specs[0].reference, None
    with tempfile.TemporaryDirectory() as scratch:
        load = cache(partial(load_dictionary, storage, scratch=Path(scratch)))
        for spec, key, rows in zip(group.specs, group.keys, read_cells(shards, group.specs), strict=True):
            known = side.reference if side else seen_alive(load(reference), partial(_base_fit, rows))
            others, bases = ([load(x) for x in keys] for keys in (spec.others, spec.bases))
            cell = CellDictionaries(load(spec.dictionary), others, known, bases)
            side = side or base_side(rows, cell, settings)
            answer = judge_cell(rows, cell, settings, spec.asked, group.cfg.code_tokens, side)
            storage.write_json(key, asdict(answer))


def _base_fit(rows: CellRows) -> np.ndarray:
    return rows.base_fit


def read_cells(shards: ShardSet, specs: Sequence[CellSpec]) -> Iterator[CellRows]:
    """Rows of each cell's source beside those of the base, without position 0; those of the base are read
    once."""
    fit, evaluation = (shards.tokens(split) for split in ("fit", "eval"))
    keep = {"fit": fit.used, "eval": evaluation.used}
    (layer,) = {spec.layer for spec in specs}

    def read(source: str) -> list[np.ndarray]:
        return [shards.read(layer, source, split=split)[kept] for split, kept in keep.items()]

    base = read(BASE)
    corpora = np.asarray(evaluation.corpus[keep["eval"]], dtype=str)
    facts = {
        "tokens": evaluation.token_id[keep["eval"]],
        "positions": evaluation.position[keep["eval"]],
        "corpora": corpora,
        "fit_corpora": np.asarray(fit.corpus[keep["fit"]], dtype=str),
        "texts": tuple(sorted(map(str, np.unique(corpora)), key=lambda name: (name != DOMAIN, name))),
    }
    documents = fit.doc_id[keep["fit"]], evaluation.doc_id[keep["eval"]]
    for spec in specs:
        yield CellRows(*read(spec.source), *base, *documents, **facts)  # type: ignore[arg-type]


def read_answer(storage: Storage, key: str) -> CellVisibility:
    """The answer that is stored under a key.

    Raises:
        StorageError: the file is damaged, or of another version.
    """
    try:
        return msgspec.convert(storage.read_json(key), CellVisibility)
    except (msgspec.ValidationError, AssertionError) as e:
        raise StorageError(f"{storage.path(key)} holds no answer ({e!r}): delete it and run again") from e
