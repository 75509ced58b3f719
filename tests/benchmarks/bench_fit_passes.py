"""What a pass over the shards costs: by the number of dictionaries in it, by tokens, and in memory beside
SAELens and sparsify.

    python -m tests.benchmarks.bench_fit_passes [d_model=640 d_sae=4096 k=32 batch=2048 rows=32768 steps=64
    threads=1 memory=1]

    dictionaries  seconds of one pass that reads a hookpoint once and fits 1, 4 and 16 dictionaries of it
    (seeds) from disk to manifests stacked       training steps of 2, 4 and 16 dictionaries of one shape one
    after the other and together, at d_sae 512, k 8 and at d_sae, k tokens        seconds of one epoch over 1,
    2, 4 and 8 eighths of the rows, and the straight line through them memory        peak of resident memory
    while three steps run, over what rows and libraries hold before; a process per side

`memory=0` leaves the last out. What is not installed (extra [bench]) is left out and said.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deltasae_ray.batches import TokenBatch
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.fitting import FitJob
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.rows import Rows, Tokens
from deltasae_ray.fit.worker import fit_share
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.stacked import train_together
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.manifest import commit_unit
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage
from tests.benchmarks.bench_fit import rows as made_rows
from tests.benchmarks.peers import saelens, sparsify_coder

KEY, HOOK, CONTEXT = "harvest/0000000000000000", Hookpoint(1), 128
SOURCES = (Source("base", "base", "base"), Source("r4", "adapter", "04" * 8, rank=4, alpha=8.0, seed=0))
STEPS_STACKED = 3
"""Steps for which a stack is formed: what forming it costs is shared by a few only, where a study shares it
by hundreds."""
SIDES = ("topk", "batchtopk", "SAELens topk", "SAELens batchtopk", "sparsify")


def harvest(storage: Storage, x: np.ndarray) -> None:
    """Shards of the rows, an eighth of them for evaluation."""
    per_unit = len(x) // 8
    contexts, rng = per_unit // CONTEXT, np.random.default_rng(0)
    units = [
        TokenBatch(
            split="eval" if i == 7 else "fit",
            corpus="domain",
            input_ids=rng.integers(0, 1000, (contexts, CONTEXT)).astype(np.int32),
            mask=np.ones((contexts, CONTEXT), bool),
            marker=np.zeros((contexts, CONTEXT), bool),
            doc_ids=tuple(f"doc-{i}-{j}" for j in range(contexts)),
            starts=tuple(range(0, contexts * CONTEXT, CONTEXT)),
        )
        for i in range(8)
    ]
    write_harvest(storage, KEY, {"d_model": x.shape[1]})
    write_units(storage, KEY, map(Unit.of, units))
    for source in SOURCES:
        write_source(storage, KEY, source)
    for i, unit in enumerate(units):
        part = x[i * per_unit : i * per_unit + unit.num_tokens]
        commit_unit(storage, KEY, [write_shard(storage, KEY, s.digest, unit, {HOOK: part}) for s in SOURCES])


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def dictionaries(x: Tensor, cfg: FitConfig) -> None:
    print(f"{'dictionaries':>14} {'seconds':>9} {'each':>8} {'of a pass for each':>20}")
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        harvest(storage, x.numpy())
        shards = open_harvest(storage, KEY)
        reading = timed(lambda: Rows.read(shards, Tokens.read(shards), "r4", HOOK.layer))

        def one_pass(seeds: range) -> float:
            points = tuple(FitPoint("r4", HOOK.layer, cfg.sizes[0], cfg.k[0], "topk", seed) for seed in seeds)
            return timed(lambda: fit_share(FitJob(storage, KEY, points, cfg), 0, 1, "cpu"))

        one_pass(range(1))  # what a process pays once
        alone = 0.0
        for count in (1, 4, 16):
            took = one_pass(range(100 * count, 101 * count))
            alone = alone or took
            print(f"{count:14} {took:9.2f} {took / count:8.2f} {took / (count * alone):20.2f}")
    print(f"reading took {reading:.2f} s of each pass")


def stacked(x: Tensor, recipe: Recipe, rounds: int = 5) -> None:
    """A round is one step of every dictionary, one after the other and then together."""
    print(
        f"\n{'d_sae':>7} {'k':>4} {'dictionaries':>14} {'alone ms each':>14} {'stacked ms each':>16}"
        f" {'faster by':>10}"
    )
    for shape in dict.fromkeys((replace(recipe, d_sae=512, k=8, batch_tokens=1024), recipe)):
        endless = replace(shape, steps=10**6)
        for count in (2, 4, 16):
            alone, members = ([Trainer(x, endless, seed) for seed in range(count)] for _ in range(2))
            sides = (
                partial(lambda trainers: [t.step() for t in trainers], alone),
                partial(train_together, members, STEPS_STACKED),
            )
            times = [(timed(sides[0]), timed(sides[1]) / STEPS_STACKED) for _ in range(rounds + 1)][1:]
            apart, joined = (1e3 * statistics.median(side) / count for side in zip(*times, strict=True))
            ratio = statistics.median(a / b for a, b in times)
            print(f"{shape.d_sae:7} {shape.k:4} {count:14} {apart:14.1f} {joined:16.1f} {ratio:10.2f}")


def tokens(x: Tensor, recipe: Recipe) -> None:
    print(f"\n{'tokens':>14} {'seconds':>9} {'microseconds a token':>21}")
    found = []
    for eighths in (1, 2, 4, 8):
        part = x[: len(x) * eighths // 8]
        trainer = Trainer(part, replace(recipe, steps=max(1, len(part) // recipe.batch_tokens)), seed=0)
        seconds = timed(lambda t=trainer: all(t.step() is None for _ in range(t.recipe.steps)))
        used = trainer.steps_done * trainer.batch
        found.append((used, seconds))
        print(f"{used:14} {seconds:9.2f} {1e6 * seconds / used:21.1f}")
    used, seconds = np.array(found).T
    slope, start = np.polyfit(used, seconds, 1)
    worst = np.abs(seconds - (start + slope * used)).max() / seconds.max()
    print(
        f"line: {start:.2f} s + {1e6 * slope:.1f} microseconds a token; farthest point {worst:.1%} of the"
        " longest time off it"
    )


def peak_of(side: str, x: Tensor, recipe: Recipe) -> float:
    """MB by which the peak of this process rises over what it held before, while three steps run."""
    name, _, architecture = side.partition(" ")
    if name == "sparsify":
        import sparsify as _  # noqa: F401
    elif name == "SAELens":
        import sae_lens as _  # noqa: F401
    own = replace(recipe, architecture="batchtopk" if "batchtopk" in side else "topk")

    def three_steps(rows: Tensor, of: Recipe) -> None:
        if name == "SAELens":
            step = saelens(rows, of.d_sae, of.k, of.batch_tokens, 10**4, architecture)[1]
        else:
            trainer = Trainer(rows, of, seed=0)
            step = sparsify_coder(trainer)[1] if name == "sparsify" else trainer.step
        for _ in range(3):
            step()

    three_steps(
        x[:256, :16].clone(), replace(own, d_sae=64, k=2, batch_tokens=64)
    )  # what libraries load at their first step
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    three_steps(x, own)
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")
    )
    return int(line.split()[1]) / 1024


def memory(words: dict[str, int]) -> None:
    print(f"\n{'side':>20} {'peak MB':>9}")
    for side in SIDES:
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_fit_passes",
            f"side={side}",
            *(f"{k}={v}" for k, v in words.items()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{side:>20}  left out: {done.stderr.strip().splitlines()[-1]}")
        else:
            print(f"{side:>20} {json.loads(done.stdout.splitlines()[-1]):9.0f}")


def main(
    d_model: int = 640,
    d_sae: int = 4096,
    k: int = 32,
    batch: int = 2048,
    rows: int = 32_768,
    steps: int = 64,
    threads: int = 1,
    memory_too: int = 1,
    side: str = "",
) -> None:
    torch.set_num_threads(threads)
    recipe = Recipe(d_sae, k, batch_tokens=batch, steps=steps)
    x = made_rows(d_model, min(2 * d_sae, 8192), 24, rows)
    if side:
        print(json.dumps(peak_of(side, x, recipe)))
        return
    print(
        f"d_model {d_model}, d_sae {d_sae}, k {k}, batch {batch}, {rows} rows, {threads} threads; {steps}"
        " steps a dictionary\n"
    )
    dictionaries(x, FitConfig(d_sae=(d_sae,), k=(k,), batch_tokens=batch, steps=steps))
    stacked(x, recipe)
    tokens(x, recipe)
    if memory_too:
        memory({"d_model": d_model, "d_sae": d_sae, "k": k, "batch": batch, "rows": rows, "threads": threads})


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    named = {("memory_too" if name == "memory" else name): value for name, value in given.items()}
    main(**{name: value if name == "side" else int(value) for name, value in named.items()})  # type: ignore[arg-type]
