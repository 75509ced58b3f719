"""One dictionary of a study, by what it depends on and nothing else."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from deltasae_ray.fit.config import FitConfig
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.sae.names import THIRDS, Documents, Featureless
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.storage import digest


@dataclass(frozen=True, order=True)
class FitPoint(DictionaryId):
    """A dictionary to fit: on which source's rows at which layer, of which shape, from which seed."""

    documents: Documents = "all"
    """Which training documents, by a hash of the document's id."""
    control: Featureless = "none"
    """What is made otherwise on purpose, to see what the recipe does without it."""

    def recipe(self, cfg: FitConfig) -> Recipe:
        """What decides the training apart from rows and seed."""
        return Recipe(
            self.d_sae,
            self.k,
            self.architecture,
            lr=cfg.lr,
            batch_tokens=cfg.batch_tokens,
            steps=cfg.steps,
            auxk=cfg.auxk,
            l1=cfg.l1 if self.architecture == "standard" else 0.0,
            train_decoder=self.control != "frozen_decoder",
        )

    def key(self, harvest_key: str, sources: Mapping[str, str], cfg: FitConfig) -> str:
        """Folder of the dictionary below the storage root; `sources` maps names to digests, since a name is
        not content."""
        recipe = asdict(self.recipe(cfg))
        # Only controls have it, and `control` tells: other dictionaries keep their keys.
        del recipe["train_decoder"]
        inputs = {
            "harvest": harvest_key,
            "source": sources[self.adapter],
            "hookpoint": str(Hookpoint(self.layer)),
            "recipe": recipe,
            "seed": self.seed,
            "documents": self.documents,
        } | ({} if self.control == "none" else {"control": self.control})
        return f"dictionaries/{digest(inputs)}"

    def __str__(self) -> str:
        text = "" if self.control == "none" else f", {self.control.replace('_', ' ')} control"
        return f"{super().__str__()}{text}"


def in_documents(doc_ids: np.ndarray, documents: Documents) -> np.ndarray:
    """bool [token]: rows whose document is in the half, or part; by a hash of its id, so that no document is
    on both sides."""
    if documents == "all":
        return np.ones(len(doc_ids), dtype=bool)
    if documents == "search":
        inside = {d: int(digest(["search", str(d)]), 16) % 5 > 0 for d in set(doc_ids)}
    elif documents in THIRDS:
        inside = {d: THIRDS[int(digest(["third", str(d)]), 16) % 3] == documents for d in set(doc_ids)}
    else:
        inside = {d: "AB"[int(digest(["half", str(d)]), 16) % 2] == documents for d in set(doc_ids)}
    return np.fromiter((inside[d] for d in doc_ids), dtype=bool, count=len(doc_ids))
