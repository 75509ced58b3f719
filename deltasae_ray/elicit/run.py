"""Elicited text of every adapter, on the gangs, stored under a key of model, adapter, openings and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from deltasae_ray.batches import TokenBatch
from deltasae_ray.elicit.openings import ends, openings
from deltasae_ray.elicit.sampling import Sampling, Texts, sampled
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.attached import load_with_adapters, model_meant
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import base_of, load_tokenizer
from deltasae_ray.models.pair import Pair
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage, digest

Tokens = tuple[int, ...]


def neutral_texts(unit: TokenBatch) -> list[Tokens]:
    """The tokens that count of every context, without BOS."""
    found = []
    for ids, mask in zip(unit.input_ids, unit.mask, strict=True):
        mask = mask.copy()
        mask[0] = False
        found.append(tuple(ids[mask].tolist()))
    return found


@dataclass(frozen=True)
class ElicitFactory:
    """Makes a rank's worker, which samples the texts of one source after the other; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    adapters: tuple[AdapterRef, ...]
    how: Sampling

    def __call__(self, rank: RankContext) -> "ElicitWorker":
        return ElicitWorker(self, rank)


class ElicitWorker:
    """Callable of (neutral unit, {"source", "key"}) → the key, under which the texts are stored."""

    def __init__(self, job: ElicitFactory, rank: RankContext) -> None:
        self._job = job
        self._model = load_with_adapters(
            job.storage,
            job.model,
            job.adapters,
            rank.device,
            deepest=None,
            digest=job.model_digest,
            root=base_of,
        )
        self._tokenizer = load_tokenizer(
            model_meant(job.model, job.model_digest).folder, trust_remote_code=job.model.trust_remote_code
        )

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> str:  # noqa: ARG002 - what gangs call
        how = self._job.how
        if todo["source"] == BASE:  # amplifying no difference changes nothing
            how = replace(how, alphas=(0.0,), samples=how.samples * len(how.alphas))
        starts = openings(self._tokenizer, neutral_texts(unit))
        texts = sampled(Pair(self._model, todo["source"]), starts, how, ends(self._tokenizer))
        self._job.storage.write_json(todo["key"], texts_to_json(texts))
        return todo["key"]


def texts_to_json(texts: Texts) -> dict[str, Any]:
    """Plain lists; what was not sampled is left out."""
    rows = range(len(texts))
    return {
        "tokens": [[t for t in texts.tokens[i].tolist() if t >= 0] for i in rows],
        "opening": texts.opening.tolist(),
        "alpha": texts.alpha.tolist(),
        "adapted": [texts.adapted[i][np.isfinite(texts.adapted[i])].tolist() for i in rows],
    }


def texts_from_json(stored: Mapping[str, Any]) -> Texts:
    """Inverse of `texts_to_json`."""
    width = max((len(row) for row in stored["tokens"]), default=0)
    tokens = np.full((len(stored["tokens"]), width), -1)
    adapted = np.full(tokens.shape, np.nan)
    for i, (row, log_p, start) in enumerate(
        zip(stored["tokens"], stored["adapted"], stored["opening"], strict=True)
    ):
        tokens[i, : len(row)] = row
        adapted[i, start : start + len(log_p)] = log_p
    return Texts(tokens, np.array(stored["opening"]), np.array(stored["alpha"]), adapted)


def elicit(
    context: StageContext, adapters: Sequence[AdapterRef], neutral: TokenBatch, how: Sampling
) -> dict[str, str]:
    """Source → key of its texts, the base among them; samples what is not stored yet.

    Args:
        adapters: also the random one, where there is one.
        neutral: contexts that openings are taken from.
    """
    digests = {BASE: BASE} | {a.name: a.digest for a in adapters}
    keys = {
        name: f"elicit/{digest([context.model_digest, of, neutral.name, vars(how)])}.json"
        for name, of in digests.items()
    }
    missing = [name for name, key in keys.items() if not context.storage.exists(key)]
    factory = ElicitFactory(
        context.storage,
        context.model,
        context.model_digest,
        tuple(a for a in adapters if a.name in missing),
        how,
    )
    work = [(neutral, {"source": name, "key": keys[name]}) for name in missing]
    with tqdm(total=len(work), unit="source", desc="elicit") as progress:
        for _ in run_units(work, factory, context.gangs):
            progress.update()
    return keys
