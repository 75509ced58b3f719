"""What the base model writes when a direction is added to its residual stream, beside random directions of
the same length (steering; Minder et al. 2510.13900, section 3)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deltasae_ray.analyses.audit.table import STRENGTHS
from deltasae_ray.analyses.audit.task import Audited, read_directions
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.batches import TokenBatch
from deltasae_ray.elicit.openings import ends
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.models.attached import tokenizer_meant
from deltasae_ray.models.capture import residuals
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.pair import Pair, best
from deltasae_ray.models.patching import steered
from deltasae_ray.runtime.context import StageContext, Step, remembered, run_steps
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage, digest

RANDOM = 2
"""Random directions that are added beside."""
TOKENS = 12
"""Tokens of a text."""
OPENING = "The"
"""What every text begins with, after BOS."""
_ROWS = 64
"""Texts that are written at once."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Steered:
    """What the base writes under the directions of one audit; a text for each of STRENGTHS."""

    texts: dict[str, tuple[Tokens, ...]]
    """Direction → its texts."""
    random: tuple[tuple[Tokens, ...], ...]
    """Texts of each random direction."""


@torch.no_grad()
def steered_texts(
    model: nn.Module,
    hookpoint: Hookpoint,
    added: Float[Tensor, "row d_model"],
    opening: Tokens,
    end: frozenset[int],
    tokens: int = TOKENS,
) -> list[Tokens]:
    """The likeliest continuation of `opening` by the base, token by token, with a row of `added` in each.

    Args:
        opening: one token or more. Nothing is added at its first, which is BOS where the model has one.
        end: tokens that end a text; they are not part of it.
    """
    pair = Pair(model, BASE)
    texts: list[Tokens] = []
    for part in added.to(pair.device).split(_ROWS):
        ids = torch.tensor(opening, device=pair.device).expand(len(part), -1)
        written: list[Tensor] = []
        with pair.caches() as cached:
            hidden, _ = cached.feed(ids[:, :1])
            fed = ids[:, 1:]
            with steered(model, hookpoint, part):
                for _ in range(tokens):
                    if fed.shape[1]:
                        hidden, _ = cached.feed(fed)
                    token, _ = best(pair.head, hidden[:, -1])
                    written.append(token.cpu())
                    fed = token[:, None]
        texts += [_until(row, end) for row in torch.stack(written, 1).tolist()]
    return texts


def _until(row: Iterable[int], end: frozenset[int]) -> Tokens:
    text: list[int] = []
    for token in row:
        if token in end:
            break
        text.append(token)
    return tuple(text)


def usual_length(model: nn.Module, unit: TokenBatch, hookpoint: Hookpoint) -> float:
    """Median length of the base's residual stream over the tokens that count, BOS left out."""
    device = next(model.parameters()).device
    taken = residuals(model, torch.from_numpy(unit.input_ids).to(device), [hookpoint], BASE)[hookpoint]
    mask = torch.from_numpy(unit.mask).to(device).clone()
    mask[:, 0] = False
    return float(taken[mask].float().norm(dim=-1).median())


@dataclass(frozen=True)
class _Writer:
    """Makes the step that writes the texts of one audit; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str

    def __call__(self) -> Step:
        tokenizer = tokenizer_meant(self.model, self.model_digest)
        bos: Tokens = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        opening = (*bos, *tokenizer.encode(OPENING, add_special_tokens=False))
        return partial(self.write, opening, ends(tokenizer))

    def write(
        self, opening: Tokens, end: frozenset[int], model: nn.Module, unit: TokenBatch, todo: Any
    ) -> tuple[str, list[list[int]]]:
        """The audit's key, and texts of every direction at every strength, the random ones last."""
        hookpoint = Hookpoint(todo["layer"])
        kept = torch.from_numpy(read_directions(self.storage, todo["audit"])).float()
        rows = unit_rows(kept[: todo["named"] + RANDOM]) * usual_length(model, unit, hookpoint)
        added = torch.stack([rows * strength for strength in STRENGTHS], 1).flatten(0, 1)
        texts = steered_texts(model, hookpoint, added, opening, end)
        return todo["audit"], [list(text) for text in texts]


def steer(context: StageContext, audits: Mapping[LeafSpec, Audited]) -> dict[LeafSpec, Steered]:
    """Leaf → what the base writes under its directions; written once per audit, whose key holds the
    model's. Empty for a sharded model."""
    if context.model.sharding != "none":  # text is written token by token, by a whole model
        return {}
    unit = next(iter(context.corpus.of("eval")))
    of = digest([unit.name, STRENGTHS, RANDOM, TOKENS, OPENING])
    keys = {leaf: f"{a.key}/steered-{of}.json" for leaf, a in audits.items() if a.directions}

    def make(missing: list[LeafSpec]) -> dict[LeafSpec, dict]:
        work = [(unit, _todo(leaf, audits[leaf])) for leaf in missing]
        writer = _Writer(context.storage, context.model, context.model_digest)
        texts = dict(run_steps(context, (), work, writer, ("steered texts", "dictionaries")))
        return {leaf: {"texts": texts[audits[leaf].key]} for leaf in missing}

    stored = remembered(context.storage, keys, make)
    return {leaf: _by_name(audits[leaf].directions, written["texts"]) for leaf, written in stored.items()}


def _todo(leaf: LeafSpec, audited: Audited) -> dict[str, Any]:
    return {"layer": leaf.layer, "audit": audited.key, "named": len(audited.directions)}


def _by_name(names: tuple[str, ...], texts: list[list[int]]) -> Steered:
    each = [
        tuple(tuple(text) for text in texts[i : i + len(STRENGTHS)])
        for i in range(0, len(texts), len(STRENGTHS))
    ]
    return Steered(dict(zip(names, each, strict=False)), tuple(each[len(names) :]))
