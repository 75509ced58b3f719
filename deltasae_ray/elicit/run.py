"""Elicited text of every adapter, on the gangs, stored under a key of model, adapter, openings and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from deltasae_ray.batches import TokenBatch
from deltasae_ray.elicit.openings import ends, openings
from deltasae_ray.elicit.sampling import Sampling, Texts, sampled
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.attached import tokenizer_meant
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.pair import Pair
from deltasae_ray.runtime.context import StageContext, Step, run_steps
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage, digest

Tokens = tuple[int, ...]


def neutral_texts(unit: TokenBatch) -> list[Tokens]:
    """The tokens that count of every context, without BOS."""
    texts = []
    for ids, mask in zip(unit.input_ids, unit.mask, strict=True):
        mask = mask.copy()
        mask[0] = False
        texts.append(tuple(ids[mask].tolist()))
    return texts


@dataclass(frozen=True)
class Sampler:
    """Makes the step that samples the texts of one source; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    how: Sampling

    def __call__(self) -> Step:
        return partial(self.sample, tokenizer_meant(self.model, self.model_digest))

    def sample(self, tokenizer: Any, model: nn.Module, neutral: TokenBatch, todo: Any) -> str:
        """Samples the texts of `todo["source"]`, stores them under `todo["key"]`, and returns the key."""
        how = self.how
        if todo["source"] == BASE:  # amplifying no difference changes nothing
            how = replace(how, alphas=(0.0,), samples=how.samples * len(how.alphas))
        starts = openings(tokenizer, neutral_texts(neutral))
        texts = sampled(Pair(model, todo["source"]), starts, how, ends(tokenizer))
        self.storage.write_json(todo["key"], texts_to_json(texts))
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
    sampler = Sampler(context.storage, context.model, context.model_digest, how)
    work = [(neutral, {"source": name, "key": keys[name]}) for name in missing]
    run_steps(context, [a for a in adapters if a.name in missing], work, sampler, ("elicit", "sources"))
    return keys
