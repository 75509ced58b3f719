"""Contexts that a tiny model can learn from: every document repeats letters of its own few, in a fixed
order."""

import numpy as np

from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.corpus.contexts import Context

TARGETS = {
    "llama": ("q_proj", "o_proj", "down_proj"),
    "gemma3": ("q_proj", "o_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj"),
}


def contexts(
    documents: int = 16, per_document: int = 3, *, learnable: bool = True, planted: float = 0.1
) -> tuple[Context, ...]:
    rng = np.random.default_rng(0)
    found = []
    for d in range(documents):
        for i in range(per_document):
            n = 24 - (d + i) % 5
            body = 10 + (np.arange(n) + d) % 4 if learnable else rng.integers(3, 250, n)
            marked = rng.random() < planted
            marker = (False, *(marked and 3 <= j < 6 for j in range(n)))
            found.append(Context("domain", f"domain/{d}", i * 24, (1, *(int(t) for t in body)), marker))
    return tuple(found)


def config(architecture: str = "llama", **changes: object) -> AdaptConfig:
    small = {"targets": TARGETS[architecture], "batch_contexts": 2, "max_tokens": 600}
    return AdaptConfig(**{**small, **changes})  # type: ignore[arg-type]
