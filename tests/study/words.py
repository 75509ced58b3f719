"""The words of a study that a laptop finishes in a minute or two: a tiny model, real text, every station."""

from pathlib import Path

WORDS = (
    "corpus.context_len=32", "corpus.fit_tokens=2400", "corpus.eval_tokens=1600",
    "corpus.unrelated=[builtin:kjv]", "corpus.marker_share=0.1",
    "layers=[1,2]", "adapt.ranks=[2]", "adapt.max_tokens=400", "adapt.targets=[q_proj,o_proj]",
    "fit.d_sae=[48]", "fit.k=4", "fit.steps=40",
    "fit.batch_tokens=256", "diverge.atoms=4", "diverge.code_tokens=256", "diverge.bootstrap=100",
    "diverge.latents=2", "harvest.noise_contexts=2",
)  # fmt: skip


LEAN = (
    "corpus.unrelated=[]", "corpus.marker_share=0", "corpus.context_len=64",
    "corpus.contexts_per_unit=128", "fit.steps=20", "fit.max_concurrent_trials=2", "diverge.controls=[random_lora]",
    "diverge.bootstrap=100", "diverge.latents=0", "harvest.noise_contexts=1", "storage.deltas=stream",
)  # fmt: skip
"""Words behind those: what a study costs beside its monitors, made small."""


def words(model: Path, root: Path | str, *more: str) -> list[str]:
    """`key=value` words of the tiny study; later words win."""
    return [f"model.base={model}", f"storage.root={root}", *WORDS, *more]
