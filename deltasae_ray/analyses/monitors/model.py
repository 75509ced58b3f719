"""Forward passes over labelled texts: every monitor's scores under the base model and under each adapter."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltasae_ray.analyses.monitors.monitor import Monitor, read
from deltasae_ray.batches import TokenBatch
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.capture import residuals, unit_ids, unit_mask
from deltasae_ray.models.load import base_of


def document_scores(
    model: nn.Module,
    unit: TokenBatch,
    monitors: Mapping[str, Mapping[str, Sequence[Monitor]]],
    sources: Sequence[str],
) -> list[dict[str, Any]]:
    """One row per document of the unit and source.

    Position 0 (BOS) is not read: it is unlike any token that a monitor is made for.

    Args:
        model: with its adapters attached.
        monitors: text → source → the monitors of that text, with those repaired for the source.

    Returns:
        `{doc_id, source, scores: {monitor: [score]}, vectors: {hookpoint: {last, mean}}}`, vectors as
        `packed` makes them.
    """
    device = next(base_of(model).parameters()).device
    ids, mask = unit_ids(unit, device), unit_mask(unit, device).clone()
    mask[:, 0] = False
    rows = []
    for source in sources:
        mine = monitors[unit.corpus][source]
        taken = residuals(model, ids, sorted({m.hookpoint for m in mine}), source)
        for i, doc_id in enumerate(unit.doc_ids):
            held = {h: taken[h][i][mask[i]].float().cpu() for h in taken}
            rows.append(
                {
                    "doc_id": doc_id,
                    "source": source,
                    "scores": {m.name: m.scores(held[m.hookpoint]).tolist() for m in mine},
                    "vectors": {str(h): _vectors(held[h]) for h in held},
                }
            )
    return rows


def _vectors(h: Tensor) -> dict[str, str]:
    return {"last": packed(h[-1]), "mean": packed(h.mean(0))}


def packed(vector: Tensor) -> str:
    """A float32 vector as base64 of its little-endian bytes."""
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """Inverse of `packed`."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def grouped_scores(monitor: Monitor, h: Tensor, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of many documents whose tokens stand one after the other, and each score's document."""
    tokens = monitor.token_scores(h)
    if monitor.reads == "each":
        return tokens.double().numpy(), document
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    parts = torch.tensor_split(tokens, starts[1:].tolist())
    scores = torch.cat([read(part, monitor.reads) for part in parts]).double().numpy()
    return scores, document[starts]


def hookpoints_of(monitors: Sequence[Monitor]) -> tuple[Hookpoint, ...]:
    """Where monitors read, ascending."""
    return tuple(sorted({m.hookpoint for m in monitors}))
