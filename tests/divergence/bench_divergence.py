"""Matching, pursuit and a whole leaf, beside the bare matrix products that they cannot do without.

python -m tests.divergence.bench_divergence [match] [pursue] [leaf]
"""

import resource
import sys
import time
from collections.abc import Callable

import torch

from deltasae_ray.cli import say
from deltasae_ray.divergence.context import Settings
from deltasae_ray.divergence.leaf import compare_layer
from deltasae_ray.divergence.matching import max_cosine
from deltasae_ray.divergence.omp import pursue


def seconds(work: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Best wall and processor seconds: on a busy machine only the second can be compared."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        best = [min(best[0], time.perf_counter() - wall), min(best[1], time.process_time() - cpu)]
    return best[0], best[1]


def beside(name: str, ours: tuple[float, float], bare: tuple[float, float], limit: float) -> None:
    say(f"{name}: {ours[0]:.2f} s ({ours[1]:.2f} s of processors); bare products {bare[0]:.2f} s ({bare[1]:.2f} s)")
    say(f"    ratio {ours[0] / bare[0]:.2f} by wall, {ours[1] / bare[1]:.2f} by processors; aim {limit}")


def bench_match(rows: int = 16_384, d_model: int = 3584) -> None:
    """max_cosine against the bare product in the same blocks."""
    a, b = (torch.nn.functional.normalize(torch.randn(rows, d_model), dim=1) for _ in range(2))
    out = torch.empty(1024, rows)
    bare = seconds(lambda: [torch.mm(block, b.T, out=out) for block in a.split(1024)], repeats=1)
    ours = seconds(lambda: max_cosine(a, b), repeats=1)
    beside(f"max_cosine {rows} x {rows} at d {d_model}", ours, bare, 1.3)
    say(f"    peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, both decoders included")


def bench_pursue() -> None:
    """Pursuit against its k correlation products."""
    for atoms, k, tokens in ((512, 8, 2048), (16_384, 32, 512)):
        x, a = torch.randn(tokens, 640), torch.nn.functional.normalize(torch.randn(atoms, 640), dim=1)
        bare = seconds(lambda x=x, a=a, k=k: [x @ a.T for _ in range(k)])
        ours = seconds(lambda x=x, a=a, k=k: pursue(x, a, k))
        beside(f"OMP k {k}, {atoms} atoms, d 640, {tokens} tokens", ours, bare, 1.3)
        say(f"    {1000 * ours[0] / tokens:.2f} ms a token")


def bench_leaf() -> None:
    """One adapter and layer of the demo: two sizes, with all fast controls; the demo has six of these."""
    from tests.divergence.demo_size import demo_layer

    inputs, leaves = demo_layer()
    wall, cpu = seconds(lambda: compare_layer(inputs, leaves, Settings()), repeats=1)
    say(f"compare_layer, d 640, sizes 256 and 512, 30,000 + 16,000 tokens: {wall:.1f} s, {cpu:.1f} s of processors")
    say(f"    6 of these on 2 cores: {6 * cpu / 2:.0f} s of processors each; aim 120 s")


BENCHES = {"match": bench_match, "pursue": bench_pursue, "leaf": bench_leaf}

if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()
