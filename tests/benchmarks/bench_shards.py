"""Shards against raw .npy, side by side in one run: the same float32 vectors from memory to a synced disk,
and back into one array.

    python -m tests.benchmarks.bench_shards [--rows 1024] [--d-model 640] [--units 24] [--layers 3] [--repeats
    9] [--folder DIR]

MB are float32 megabytes of vectors for every format. The .npy files hold nothing else: no tokens, no scale,
no hash, no record; theirs is the bare copy. float16 .npy is given its vectors already rounded and hands back
float16, so it neither converts nor survives 65,504. Repetitions alternate between the formats; reads come
from the page cache.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deltasae_ray.batches import TokenBatch
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.manifest import Manifest, commit_unit
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage

KEY = "harvest/bench"


@dataclass
class Times:
    """Seconds of each repetition."""

    write: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)


def make_unit(index: int, rows: int) -> TokenBatch:
    contexts = max(rows // 128, 1)
    shape = (contexts, rows // contexts)
    ids = np.random.default_rng(index).integers(0, 250_000, shape).astype(np.int32)
    full = np.ones(shape, bool)
    docs = tuple(f"document-{index}-{c}" for c in range(contexts))
    return TokenBatch("fit", "domain", ids, full, ~full, docs, (0,) * contexts)


def write_shards(root: Path, units: list[TokenBatch], hooks: list[Hookpoint], vectors: np.ndarray) -> None:
    storage = Storage(str(root))
    write_harvest(storage, KEY, {"d_model": vectors.shape[-1]})
    write_units(storage, KEY, map(Unit.of, units))
    write_source(storage, KEY, Source("base", "base", "base"))
    for unit, of_unit in zip(units, vectors, strict=True):
        commit_unit(
            storage, KEY, [write_shard(storage, KEY, "base", unit, dict(zip(hooks, of_unit, strict=True)))]
        )
    Manifest.compact(storage, KEY)


def read_shards(root: Path, hooks: list[Hookpoint]) -> None:
    shards = open_shards(root)
    for hook in hooks:
        shards.read(hook)


def write_npy(root: Path, vectors: np.ndarray) -> None:
    root.mkdir(parents=True)
    for unit, of_unit in enumerate(vectors):
        for hook, array in enumerate(of_unit):
            with open(root / f"{unit:04}-{hook}.npy", "wb") as f:
                np.save(f, array)
                f.flush()
                os.fsync(f.fileno())


def read_npy(root: Path, layers: int) -> None:
    for hook in range(layers):
        np.concatenate([np.load(path) for path in sorted(root.glob(f"*-{hook}.npy"))])


def timed(work: Callable[[], None]) -> float:
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, value in {"rows": 1024, "d-model": 640, "units": 24, "layers": 3, "repeats": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", default=None, help="where to write; the temporary folder by default")
    args = parser.parse_args()

    units = [make_unit(index, args.rows) for index in range(args.units)]
    rows = units[0].num_tokens
    hooks = [Hookpoint(layer) for layer in range(args.layers)]
    vectors = (
        np.random.default_rng(0).standard_normal((args.units, args.layers, rows, args.d_model), np.float32)
        * 30
    )
    halves = vectors.astype(np.float16)
    formats: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
        "shards": (
            lambda root: write_shards(root, units, hooks, vectors),
            lambda root: read_shards(root, hooks),
        ),
        ".npy float32": (lambda root: write_npy(root, vectors), lambda root: read_npy(root, args.layers)),
        ".npy float16": (lambda root: write_npy(root, halves), lambda root: read_npy(root, args.layers)),
    }
    times = {name: Times() for name in formats}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for repeat in range(args.repeats + 1):
            for name, (write, read) in formats.items():
                root = Path(folder) / str(repeat) / name.strip(".").replace(" ", "-")
                root.parent.mkdir(exist_ok=True)
                write_seconds, read_seconds = (
                    timed(lambda w=write, r=root: w(r)),
                    timed(lambda r=read, p=root: r(p)),
                )
                if repeat:  # the first warms up
                    times[name].write.append(write_seconds)
                    times[name].read.append(read_seconds)
                shutil.rmtree(root)
    report(
        times, vectors.nbytes / 1e6, f"{args.units} units x {args.layers} layers of {rows} x {args.d_model}"
    )


def report(times: dict[str, Times], megabytes: float, what: str) -> None:
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(
        f"{what}: {megabytes:.0f} MB as float32, {machine}, median of {len(times['shards'].write)} [least,"
        " most]"
    )
    print(f"{'':14}{'write MB/s':>28}{'read MB/s':>28}{'shards / it, write':>22}{'read':>8}")
    for name, seconds in times.items():
        cells = [
            f"{megabytes / statistics.median(s):10.0f} [{megabytes / max(s):6.0f}, {megabytes / min(s):6.0f}]"
            for s in (seconds.write, seconds.read)
        ]
        ratios = [
            statistics.median(it) / statistics.median(ours)
            for it, ours in ((seconds.write, times["shards"].write), (seconds.read, times["shards"].read))
        ]
        print(f"{name:14}{cells[0]:>28}{cells[1]:>28}{ratios[0]:22.2f}{ratios[1]:8.2f}")


if __name__ == "__main__":
    main()
