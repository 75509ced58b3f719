"""Harvest tokens/s on the demo model with four adapters, side by side in one run:

ours         a unit through HarvestWorker: base once, each adapter once, subtract, encode, write, commit mixed
the same with harvest.precision=mixed: all sources in one pass, bf16 products by difference propagation lora
as ours, with harvest.sites=[resid_post,lora]: also what every adapted module at those layers changes limit
(1 + N) bare passes up to the deepest hookpoint on the same rows; nothing is captured or written usual
two full passes (language-model head included) per adapter, as output_hidden_states users do it

python -m tests.benchmarks.bench_harvest [rounds]
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.harvest.worker import HarvestPlan, HarvestWorker, Todo
from deltasae_ray.hookpoints import resolve
from deltasae_ray.models.adapters import fetch, import_adapter
from deltasae_ray.models.capture import adapter_active, unit_ids, unit_mask
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import backbone, empty_model, load_model, load_tokenizer
from deltasae_ray.models.local import lora_writers
from deltasae_ray.models.precision import noise_floor
from deltasae_ray.models.source import resolve_model
from deltasae_ray.models.together import harvested_deltas
from deltasae_ray.runtime.allocation import keep_freed_memory
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage
from tests.tiny import save_adapter

RANKS = (4, 8, 16, 32)
LAYERS = (9, 12, 15)


def main(rounds: int) -> None:
    keep_freed_memory()  # as gangs do; all sides have it
    cfg = ModelConfig()
    source = resolve_model(cfg)
    corpus = build_corpus(CorpusConfig(fit_tokens=4000, eval_tokens=1000), load_tokenizer(source.folder))
    units = [u for u in corpus.units if u.input_ids.shape == (8, 129)][: rounds + 1]
    with tempfile.TemporaryDirectory() as scratch:
        storage, empty = Storage(scratch), empty_model(source.folder)
        targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        refs = tuple(
            import_adapter(
                storage,
                save_adapter(
                    Path(scratch) / f"r{r}", source.folder, rank=r, seed=r, scale=0.01, targets=targets
                ),
                f"r{r}",
                empty,
            )
            for r in RANKS
        )
        hookpoints = resolve(LAYERS, source.num_layers)
        worker = HarvestWorker(
            HarvestPlan(storage, "harvest/bench", cfg, refs, hookpoints), RankContext(0, 1, "cpu")
        )
        mixed = copy.copy(worker)  # one model for both
        mixed._plan = replace(worker._plan, key="harvest/bench-mixed", precision="mixed")
        lora = copy.copy(worker)
        folders = fetch(storage, refs, Path(scratch))
        modules = {
            name: tuple(h for h in lora_writers(folder, empty) if h.layer in LAYERS)
            for name, folder in folders.items()
        }
        lora._plan = replace(worker._plan, key="harvest/bench-lora", lora=modules)
        full = load_model(source.folder)
        missing = {d: [str(h) for h in hookpoints] for d in (BASE, *(r.digest for r in refs))}
        todo: Todo = {"window": 0, "missing": missing}
        of_modules = {r.digest: [*missing[r.digest], *map(str, modules[r.name])] for r in refs}
        runs: dict[str, Callable] = {
            "ours": lambda unit: worker(unit, todo, keep=True),
            "mixed": lambda unit: mixed(unit, todo, keep=True),
            "lora": lambda unit: lora(unit, {"window": 0, "missing": missing | of_modules}, keep=True),
            "limit": lambda unit: _bare(worker._model, unit_ids(unit)),
            "usual": lambda unit: _usual(full, unit_ids(unit)),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for i, unit in enumerate(units):
            for name, run in runs.items():
                start = time.perf_counter()
                run(unit)
                if i:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
    tokens = units[0].num_tokens
    print(
        f"{len(RANKS)} adapters, layers {LAYERS}, {tokens} tokens a unit, {torch.get_num_threads()} threads,"
        f" {len(times['ours'])} rounds"
    )
    for name, seconds in times.items():
        print(f"  {name:<6} {tokens / statistics.median(seconds):8.1f} tokens/s (median)")
    aims = (
        ("ours", "usual", ">= 4"),
        ("ours", "limit", ">= 0.95"),
        ("mixed", "usual", ">= 6.5"),
        ("lora", "ours", ">= 0.95"),
    )
    for whose, other, aim in aims:
        ratios = [b / a for a, b in zip(times[whose], times[other], strict=True)]
        print(
            f"  {whose} / {other}: {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max"
            f" {max(ratios):.2f}; aim {aim})"
        )
    _noise(worker, units[0])


def _noise(worker: HarvestWorker, unit: TokenBatch) -> None:
    """What mixed precision costs, on one context: signal over noise against fp32."""
    ids, mask = unit_ids(unit)[:1], unit_mask(unit)[:1]
    hookpoints, names = worker._plan.hookpoints, [a.name for a in worker._plan.adapters]
    run = partial(harvested_deltas, worker._model, hookpoints=hookpoints, adapters=names, together=False)
    floors = noise_floor(
        lambda t: dict(run(t, bf16=True)), lambda t: dict(run(t, bf16=False)), ids, mask, names
    )
    for name in names:
        cells = [
            f"{f.relative:.3f} / {f.snr or 0:.0f} / {f.median_token_snr or 0:.0f}"
            for f in floors[name].values()
        ]
        print(
            f"  {name}: norm of delta over base / SNR / median token's SNR (aim >= 1000), by layer:"
            f" {', '.join(cells)}"
        )


@torch.no_grad()
def _bare(model: torch.nn.Module, ids: torch.Tensor) -> None:
    # The LoRA products are part of a pass with an adapter, so the limit has them too.
    for name in (BASE, *(f"r{r}" for r in RANKS)):
        with adapter_active(model, name):
            backbone(model)(input_ids=ids, use_cache=False)


@torch.no_grad()
def _usual(model: torch.nn.Module, ids: torch.Tensor) -> None:
    # Without LoRA products, which favours it.
    for _ in range(2 * len(RANKS)):
        model(ids, output_hidden_states=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
