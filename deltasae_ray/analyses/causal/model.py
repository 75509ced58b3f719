"""A latent taken out of the adapted model, and put into the base model: what either does to predictions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deltasae_ray.analyses.causal.figures import ABLATED, ADDED, DELTA, NONE, random_of
from deltasae_ray.batches import TokenBatch
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.behaviour import LanguageHead, language_head, scored
from deltasae_ray.models.capture import unit_ids
from deltasae_ray.models.load import base_of
from deltasae_ray.models.patching import Hidden, continued, losses_beside, whole_pass


@dataclass(frozen=True, eq=False)
class Probe:
    """The directions of one dictionary that are tried, and how much of each a token's delta holds."""

    name: str
    adapter: str
    hookpoint: Hookpoint
    directions: dict[str, Float[Tensor, " d_model"]]
    """By name; unit vectors."""
    amounts: Callable[[Float[Tensor, "token d_model"]], Float[Tensor, "token direction"]]
    """Deltas → how much of each direction they hold, in the order of `directions`."""
    random: Float[Tensor, "draw d_model"]
    """Unit vectors that stand in for each direction in turn."""


def document_effects(
    model: nn.Module, unit: TokenBatch, probes: Sequence[Probe], positions: int
) -> list[dict[str, Any]]:
    """One row per document of the unit and probe, summed over the scored positions: `divergence.causal` reads
    them.

    Position 0 (BOS) stays as each model has it: no dictionary here was made for it.

    Args:
        model: all blocks and the head, adapters attached.
        positions: scored labels per context, evenly spaced.

    Returns:
        `{doc_id, probe, positions, ablated: {variant: nats}, added: {variant: nats}}`: KL(base ‖ adapted
        model without it) and KL(adapted ‖ base model with it).
    """
    head, device = language_head(model), next(base_of(model).parameters()).device
    contexts, labels = scored(unit, positions)
    ids = unit_ids(unit, device)
    hookpoints = sorted({p.hookpoint for p in probes})
    base, base_last = whole_pass(model, ids, hookpoints)
    places, wanted = (contexts, labels - 1), ids[contexts, labels]
    documents = np.asarray(unit.doc_ids, dtype=object)[contexts]
    rows = []
    for adapter in dict.fromkeys(p.adapter for p in probes):
        adapted, adapted_last = whole_pass(model, ids, hookpoints, adapter)
        for probe in (p for p in probes if p.adapter == adapter):
            at = probe.hookpoint
            changes = _changes(probe, adapted[at] - base[at])
            taken = {
                v: continued(model, ids, at, adapted[at] - change, adapter)[places] for v, change in changes
            }
            changes = _changes(probe, adapted[at] - base[at])
            given = {v: continued(model, ids, at, base[at] + change)[places] for v, change in changes}
            sides = {
                ABLATED: _divergences(head, base_last[places], {NONE: adapted_last[places], **taken}, wanted),
                ADDED: _divergences(head, adapted_last[places], {NONE: base_last[places], **given}, wanted),
            }
            for doc in dict.fromkeys(documents):
                mine = documents == doc
                token_counts = {
                    side: {v: float(kl[mine].sum()) for v, kl in by.items()} for side, by in sides.items()
                }
                rows.append(
                    {"doc_id": doc, "probe": probe.name, "positions": int(mine.sum()), **token_counts}
                )
    return rows


def _changes(probe: Probe, delta: Hidden) -> Iterator[tuple[str, Hidden]]:
    """(variant, what is taken or given at every position); one at a time, since each is as large as the
    residual stream."""
    delta = delta.clone()
    delta[:, 0] = 0
    yield DELTA, delta
    amounts = delta.new_zeros(*delta.shape[:2], len(probe.directions))
    with torch.no_grad():
        amounts[:, 1:] = (
            probe.amounts(delta[:, 1:].reshape(-1, delta.shape[-1])).to(delta).view_as(amounts[:, 1:])
        )
    for i, (name, direction) in enumerate(probe.directions.items()):
        yield name, amounts[..., i, None] * direction.to(delta)
        for draw, other in enumerate(probe.random):
            yield random_of(name, draw), amounts[..., i, None] * other.to(delta)


def _divergences(
    head: LanguageHead, target: Tensor, variants: dict[str, Tensor], labels: Tensor
) -> dict[str, np.ndarray]:
    """KL(target ‖ variant) at every scored position."""
    _, kl = losses_beside(head, torch.stack([target, *variants.values()]), labels)
    return dict(zip(variants, kl[1:].cpu().numpy(), strict=True))
