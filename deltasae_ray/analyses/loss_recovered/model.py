"""How much of what an adapter does to the loss comes back when an estimate of its delta is added to the base
model at one layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltasae_ray.analyses.loss_recovered.figures import EXACT, ZERO
from deltasae_ray.analyses.loss_recovered.stand_ins import Estimate, StandIn
from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ModelError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.behaviour import LanguageHead, language_head, scored
from deltasae_ray.models.capture import unit_ids
from deltasae_ray.models.load import base_of
from deltasae_ray.models.patching import Hidden, continued, losses_beside, whole_pass


@dataclass(frozen=True, eq=False)
class Patched:
    """One dictionary of one adapter at one layer, and everything that stands in for its deltas."""

    name: str
    adapter: str
    hookpoint: Hookpoint
    stand_ins: dict[str, StandIn]
    """By variant; the exact delta and none at all are always there."""

    @property
    def budgets(self) -> dict[str, tuple[int, int]]:
        """Variant → atoms to choose from and atoms per token, of those that choose."""
        return {name: (s.atoms, s.per_token) for name, s in self.stand_ins.items() if s.atoms}


def document_recovery(
    model: nn.Module, unit: TokenBatch, patches: Sequence[Patched], positions: int
) -> list[dict[str, Any]]:
    """One row per document of the unit and patch; sums over the scored positions, so that rows of several
    units add up.

    Deltas are patched at every position but the first (BOS): no dictionary here was made for it. There all
    variants keep the base's.

    Args:
        model: all blocks and the head, adapters attached.
        positions: scored labels per context, evenly spaced.

    Returns:
        `{doc_id, patch, budgets, positions, ce: {variant: nats}, adapted: {variant: nats}}`; `adapted` holds
        the adapter's own loss.

    Raises:
        ModelError: a model whose later blocks need more of the earlier ones than the residual stream.
    """
    head, device = language_head(model), next(base_of(model).parameters()).device
    contexts, labels = scored(unit, positions)
    ids = unit_ids(unit, device)
    hookpoints = sorted({p.hookpoint for p in patches})
    base, base_last = whole_pass(model, ids, hookpoints)
    _check_continuation(model, ids, hookpoints[0], base[hookpoints[0]], base_last)
    places, wanted = (contexts, labels - 1), ids[contexts, labels]
    documents = np.asarray(unit.doc_ids, dtype=object)[contexts]
    rows = []
    for adapter in dict.fromkeys(p.adapter for p in patches):
        adapted, adapted_last = whole_pass(model, ids, hookpoints, adapter)
        for hookpoint in hookpoints:
            here = [p for p in patches if (p.adapter, p.hookpoint) == (adapter, hookpoint)]
            delta = adapted[hookpoint] - base[hookpoint]
            delta[:, 0] = 0
            exact = continued(model, ids, hookpoint, base[hookpoint] + delta)[places]
            reached = _summed(
                head,
                {"adapter": adapted_last[places], EXACT: exact, ZERO: base_last[places]},
                wanted,
                documents,
            )
            for patch in here:
                hidden = {EXACT: exact, ZERO: base_last[places]}
                for name, stand_in in patch.stand_ins.items():
                    patched = base[hookpoint] + _estimated(stand_in.estimate, base[hookpoint], delta)
                    hidden[name] = continued(model, ids, hookpoint, patched)[places]
                losses = _summed(head, hidden, wanted, documents)
                facts = {"patch": patch.name, "budgets": patch.budgets}
                rows += [
                    {
                        "doc_id": doc,
                        "positions": int((documents == doc).sum()),
                        **facts,
                        "ce": losses[doc],
                        "adapted": reached[doc],
                    }
                    for doc in losses
                ]
    return rows


def _estimated(estimate: Estimate, base: Hidden, delta: Hidden) -> Hidden:
    """The estimate at every position but the first, where it is 0."""
    width = base.shape[-1]
    estimated = torch.zeros_like(delta)
    estimated[:, 1:] = (
        estimate(base[:, 1:].reshape(-1, width), delta[:, 1:].reshape(-1, width))
        .to(delta)
        .view_as(delta[:, 1:])
    )
    return estimated


def _summed(
    head: LanguageHead, hidden: dict[str, Tensor], labels: Tensor, documents: np.ndarray
) -> dict[str, dict[str, float]]:
    """Document → variant → cross-entropy, summed over its positions."""
    ce = losses_beside(head, torch.stack(list(hidden.values())), labels)[0].cpu().numpy()
    return {
        doc: dict(zip(hidden, ce[:, documents == doc].sum(1).tolist(), strict=True))
        for doc in dict.fromkeys(documents)
    }


def _check_continuation(
    model: nn.Module, ids: Tensor, hookpoint: Hookpoint, residual: Hidden, wanted: Hidden
) -> None:
    got = continued(model, ids, hookpoint, residual)
    if not torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max())):
        raise ModelError(
            f"{type(base_of(model)).__name__}: its blocks after {hookpoint} need more than the residual"
            f" stream (max difference {float((got - wanted).abs().max()):.2g}), so that nothing can be"
            " patched in: leave loss_recovered out of controls"
        )
