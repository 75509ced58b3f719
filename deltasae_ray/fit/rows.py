"""What a dictionary is fitted to: one read of a source's rows at a hookpoint, shared by all dictionaries of
it."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from deltasae_ray.errors import DictionaryError, PrecisionError
from deltasae_ray.fit.featureless import gaussian_rows
from deltasae_ray.fit.points import FitPoint, in_documents
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.recipe import finite_rows
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tokens:
    """What every read of a harvest shares: which rows are used (position 0, BOS, is not), and of which
    document each is."""

    used: dict[str, np.ndarray]
    """Split → bool [token]."""
    fit_docs: np.ndarray
    """object [used token]"""

    @classmethod
    def read(cls, shards: ShardSet) -> "Tokens":
        tables = {split: shards.tokens(split) for split in ("fit", "eval")}
        used = {split: table.used for split, table in tables.items()}
        return cls(used, tables["fit"].doc_id[used["fit"]])

    def num_bytes(self, d_model: int) -> int:
        """Bytes of the rows of one read."""
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
    def read(
        cls, shards: ShardSet, tokens: Tokens, adapter: str, layer: int, *, evaluated: bool = True
    ) -> "Rows":
        """evaluated: with the evaluation rows, which only a dictionary that is finished needs."""
        fit, fit_kept = usable_rows(shards, tokens, adapter, layer, "fit")
        evaluation, kept = (
            usable_rows(shards, tokens, adapter, layer, "eval") if evaluated else (fit[:0], fit_kept[:0])
        )
        dropped = {"fit": int((~fit_kept).sum()), "eval": int((~kept).sum())}
        if any(dropped.values()):
            log.warning("%s layer %d: rows with NaN or infinity are left out: %s", adapter, layer, dropped)
        docs, source = tokens.fit_docs, shards.source(adapter).digest
        if any(dropped.values()):  # no second copy of the rows where there is nothing to leave out
            fit, docs, evaluation = fit[fit_kept], docs[fit_kept], evaluation[kept]
        return cls(fit, docs, evaluation, dropped, source)

    def training(self, point: FitPoint) -> torch.Tensor:
        """The rows [token, d_model] that a point is fitted to."""
        chosen = torch.from_numpy(
            self.fit if point.documents == "all" else self.fit[in_documents(self.fit_docs, point.documents)]
        )
        if point.control != "gaussian":
            return chosen
        # Seeded by what the rows are of, not by the dictionary: every size and architecture is fitted to the
        # same draw.
        return gaussian_rows(
            chosen, int(digest(["gaussian", self.source, str(Hookpoint(point.layer)), point.seed])[:15], 16)
        )

    def judging(self, point: FitPoint) -> np.ndarray:
        """The rows [token, d_model] that a point's held-out figures are of: a search leaves the evaluation
        split unseen."""
        return (
            self.evaluation
            if point.documents != "search"
            else self.fit[~in_documents(self.fit_docs, "search")]
        )


def usable_rows(
    shards: ShardSet, tokens: Tokens, adapter: str, layer: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """(rows without position 0, which of them are finite). Raises PrecisionError where too many are not,
    DictionaryError for none."""
    rows = shards.read(layer, adapter, split=split)[tokens.used[split]]
    if not len(rows):
        raise DictionaryError(f"there are no {split} tokens beyond position 0: raise corpus.{split}_tokens")
    try:
        return rows, finite_rows(torch.from_numpy(rows)).numpy()
    except PrecisionError as e:
        raise PrecisionError(f"{adapter} layer {layer}, split {split}: {e}") from e
