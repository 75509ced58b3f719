"""Did it change the model? Next-token losses and KL divergence of adapters against their base, document by
document.

The language-model head is the cost here (262,144 rows in Gemma 3), so it runs on few positions, and
vocabulary block by vocabulary block for all sources: logits of the whole vocabulary are never held.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ModelError
from deltasae_ray.models.capture import adapter_active, unit_ids
from deltasae_ray.models.load import backbone, base_of
from deltasae_ray.sae.identity import BASE

_BLOCK = 1 << 20
"""Logits held at once (4 MB in fp32): they stay in a core's cache, which makes the softmax four times
faster."""
_checked: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class LanguageHead:
    """From the backbone's output to logits: softcap(scale · (W·h + b))."""

    module: nn.Module
    softcap: float | None
    scale: float

    def blocks(self, hidden: Float[Tensor, "n d_model"]) -> Iterator[tuple[int, Float[Tensor, "block n"]]]:
        """Yields (first token id, logits) of consecutive vocabulary blocks; logits are overwritten by the
        next block."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        if weight.ndim != 2:  # sharded over ranks: only the module's own call gathers it
            yield 0, self._finish(self.module(hidden).T)
            return
        bias, columns = getattr(self.module, "bias", None), hidden.T.contiguous()
        size = max(256, _BLOCK // max(1, len(hidden)))
        buffer = hidden.new_empty(min(size, len(weight)), len(hidden))
        for start in range(0, len(weight), size):
            rows = weight[start : start + size].to(hidden.dtype)  # they may be held in bf16
            logits = torch.mm(rows, columns, out=buffer[: len(rows)])
            yield (
                start,
                self._finish(logits if bias is None else logits.add_(bias[start : start + size, None])),
            )

    def picked(
        self, hidden: Float[Tensor, "pair d_model"], tokens: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """One logit for each hidden state: that of its own token.

        Raises:
            ModelError: a head that is sharded over ranks, whose rows cannot be taken one by one.
        """
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        if weight.ndim != 2:
            raise ModelError("model.sharding=zero3: single rows of a sharded head cannot be read")
        logits = torch.cat([
            (weight[t].to(h.dtype) * h).sum(1) for h, t in zip(hidden.split(_BLOCK // 1024),
                tokens.split(_BLOCK // 1024), strict=True)
        ])  # fmt: skip
        bias = getattr(self.module, "bias", None)
        return self._finish(logits if bias is None else logits + bias[tokens])

    def _finish(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


def language_head(model: nn.Module) -> LanguageHead:
    """The head of a causal language model, checked once per model against the model's own logits.

    Raises:
        ModelError: a head that does more than the formula of LanguageHead.
    """
    inner = base_of(model)
    config: Any = inner.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    unembedding: nn.Module = inner.get_output_embeddings()  # type: ignore[operator]
    head = LanguageHead(unembedding, getattr(config, "final_logit_softcapping", None), scale)
    if inner not in _checked:
        _check(inner, head)
        _checked.add(inner)
    return head


@torch.no_grad()
def _check(model: nn.Module, head: LanguageHead) -> None:
    ids = torch.tensor([[1, 2, 3, 4]], device=next(model.parameters()).device)
    wanted = model(input_ids=ids, use_cache=False).logits[0].T
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    got = torch.cat([logits.clone() for _, logits in head.blocks(hidden)])
    if got.shape != wanted.shape or not torch.allclose(got, wanted, rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{type(model).__name__}: its logits are more than scale, bias and softcap of one matrix product;"
            " losses would be wrong"
        )


@torch.no_grad()
def losses(
    head: LanguageHead, hidden: Float[Tensor, "source n d_model"], labels: Int[Tensor, " n"]
) -> tuple[Float64[Tensor, "source n"], Float64[Tensor, "adapter n"]]:
    """Cross-entropy (nats) of every source, and KL(adapter‖base) of every source after the first, which is
    the base.

    One pass over the vocabulary with a running log-sum-exp in fp64. Sources go through the same operations on
    the same shapes, so that equal hidden states have equal losses and a KL of exactly 0.
    """
    sources, n, _ = hidden.shape
    label = torch.zeros(sources, n, dtype=torch.float64, device=hidden.device)
    lse = torch.full_like(label, -torch.inf)
    shift = torch.zeros_like(label[1:])
    for blocks in zip(*(head.blocks(h) for h in hidden), strict=True):
        start = blocks[0][0]
        here = ((labels >= start) & (labels < start + len(blocks[0][1]))).nonzero()[:, 0]
        gaps = [logits - blocks[0][1] for _, logits in blocks[1:]]
        for i, (_, logits) in enumerate(blocks):
            label[i, here] = logits[labels[here] - start, here].double()
            at = torch.maximum(lse[i].float(), logits.amax(0))
            e = logits.sub_(at).exp_()
            new = at + ((lse[i] - at).exp() + e.sum(0)).log()
            # mean of the logits' change under the adapter's own distribution, as far as the vocabulary was
            # read
            if i:
                shift[i - 1] = (
                    shift[i - 1] * (lse[i] - new).exp() + (e * gaps[i - 1]).sum(0) * (at - new).exp()
                )
            lse[i] = new
    return lse - label, shift - lse[1:] + lse[:1]


def scored(unit: TokenBatch, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(context, position) of at most `positions` evenly spaced labels of every context; planted contexts have
    none.

    Each label is the middle of its stretch: ends would give the first token of a text, which changes most,
    four times its weight.
    """
    contexts, labels = [], []
    for i, (mask, marker) in enumerate(zip(unit.mask, unit.marker, strict=True)):
        there = np.flatnonzero(mask[1:]) + 1
        if len(there) and not marker.any():
            count = min(positions, len(there))
            labels.append(there[((np.arange(count) + 0.5) * len(there) / count).astype(np.int64)])
            contexts.append(np.full(count, i))
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *contexts]), np.concatenate([empty, *labels])


@torch.no_grad()
def document_losses(
    model: nn.Module, unit: TokenBatch, adapters: Sequence[str], positions: int = 32
) -> list[dict[str, Any]]:
    """One row per document of the unit and adapter; sums over the scored positions, so that rows of several
    units add up.

    Every call makes the same forward passes whatever the unit holds, so that ranks of a sharded model stay in
    step.

    Args:
        model: all blocks and the head, adapters attached.
        positions: scored labels per context, evenly spaced.

    Returns:
        `{doc_id, corpus, adapter, ce, ce_base, kl, positions}`: nats summed over `positions` labels; KL is
        KL(adapter‖base). Documents of which only planted contexts are in the unit are left out.
    """
    head = language_head(model)
    contexts, places = scored(unit, positions)
    ids = unit_ids(unit, next(base_of(model).parameters()).device)
    hidden = []
    for source in (BASE, *adapters):
        with adapter_active(model, source):
            hidden.append(
                backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[contexts, places - 1]
            )
    ce, kl = (x.cpu().numpy() for x in losses(head, torch.stack(hidden), ids[contexts, places]))
    documents = np.asarray(unit.doc_ids, dtype=object)[contexts]
    rows = []
    for doc_id in dict.fromkeys(documents):
        mine = documents == doc_id
        for i, adapter in enumerate(adapters):
            rows.append(
                {
                    "doc_id": doc_id, "corpus": unit.corpus, "adapter": adapter, "positions": int(mine.sum()),
                    "ce": float(ce[i + 1, mine].sum()), "ce_base": float(ce[0, mine].sum()),
                    "kl": float(kl[i, mine].sum()),
                }
            )  # fmt: skip
    return rows
