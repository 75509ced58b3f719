"""Matching, pursuit and a whole leaf, beside the bare matrix products that they cannot do without.

    python -m tests.benchmarks.bench_divergence [match] [large] [pursue] [coactivation] [assign] [leaf]

The process must have little else to do; where it has, compare processor seconds.
"""

import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import normalize

from deltasae_ray.analyses.divergence.figures import compare_leaves
from deltasae_ray.analyses.divergence.layer_figures import layer_measures
from deltasae_ray.cli import say
from deltasae_ray.metrics.adapter_layer import AdapterLayer
from deltasae_ray.metrics.coding.omp import pursue
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.firing.coactivation import coactivation
from deltasae_ray.metrics.firing.firings import Firings
from deltasae_ray.metrics.geometry.matching import match, max_cosine
from deltasae_ray.metrics.inputs import LayerRows, LeafInputs, Settings
from deltasae_ray.metrics.statistics import bootstrap_counts
from deltasae_ray.sae.dictionary import Dictionary
from tests.metrics.worlds import dictionary_of


def seconds(work: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Best wall and processor seconds: on a busy machine only the second can be compared."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        best = [min(best[0], time.perf_counter() - wall), min(best[1], time.process_time() - cpu)]
    return best[0], best[1]


def beside(name: str, ours: tuple[float, float], bare: tuple[float, float], limit: float) -> None:
    say(
        f"{name}: {ours[0]:.2f} s ({ours[1]:.2f} s of processors); bare products {bare[0]:.2f} s"
        f" ({bare[1]:.2f} s)"
    )
    say(f"    ratio {ours[0] / bare[0]:.2f} by wall, {ours[1] / bare[1]:.2f} by processors; aim {limit}")


def bench_match(rows: int = 16_384, d_model: int = 3584) -> None:
    """max_cosine against the bare product in the same blocks."""
    a, b = (normalize(torch.randn(rows, d_model), dim=1) for _ in range(2))
    out = torch.empty(1024, rows)
    bare = seconds(lambda: [torch.mm(block, b.T, out=out) for block in a.split(1024)], repeats=1)
    ours = seconds(lambda: max_cosine(a, b), repeats=1)
    beside(f"max_cosine {rows} x {rows} at d {d_model}", ours, bare, 1.3)
    say(
        f"    peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}"
        " GiB, both decoders included"
    )


def bench_pursue() -> None:
    """Pursuit against its k correlation products."""
    for atoms, k, tokens in ((512, 8, 2048), (16_384, 32, 512)):
        x, a = torch.randn(tokens, 640), normalize(torch.randn(atoms, 640), dim=1)
        bare = seconds(lambda x=x, a=a, k=k: [x @ a.T for _ in range(k)])
        ours = seconds(lambda x=x, a=a, k=k: pursue(x, a, k))
        beside(f"OMP k {k}, {atoms} atoms, d 640, {tokens} tokens", ours, bare, 1.3)
        say(f"    {1000 * ours[0] / tokens:.2f} ms a token")


def bench_leaf() -> None:
    """One task of the demo: an adapter and layer, two sizes in two seeds, each size with its reference and
    fast controls; it has six."""
    rows, shapes = demo_task()

    def task() -> None:
        layer = AdapterLayer(rows, Settings())
        of_layer = layer_measures(layer)
        for reference, control, leaves in shapes:
            compare_leaves(Context(layer, reference, control), leaves, of_layer)

    wall, cpu = seconds(task, repeats=1)
    say(
        f"a task, d 640, sizes 256 and 512 in two seeds, 30,000 + 16,000 tokens: {wall:.1f} s, {cpu:.1f} s of"
        " processors"
    )
    say(
        f"    6 of these on 2 cores: {6 * cpu / 2:.0f} s of processors each; aim 100 s, and 120 s with the"
        " pairs of adapters"
    )


def bench_large(rows: int = 65_536, others: int = 16_384, d_model: int = 640) -> None:
    """match, all four maxima of 65k x 16k, against the bare product in the same blocks; what it holds beside
    the decoders."""
    a, b = (normalize(torch.randn(n, d_model), dim=1) for n in (rows, others))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = seconds(lambda: match(a, b), repeats=1)
    held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    out = torch.empty(1024, others)
    bare = seconds(lambda: [torch.mm(block, b.T, out=out) for block in a.split(1024)], repeats=1)
    beside(f"match {rows} x {others} at d {d_model}, both ways, signed and absolute", ours, bare, 1.3)
    say(
        f"    {held:.2f} GiB beside the two decoders; the whole cosine matrix would be"
        f" {4 * rows * others / 2**30:.1f} GiB"
    )


def bench_coactivation(latents: int = 16_384, docs: int = 80, places: int = 12) -> None:
    """Co-activation from codes that are there: its encoders' products are not counted."""
    rng = np.random.default_rng(0)

    def codes(rows: int, k: int) -> csr_array:
        fired = (np.repeat(np.arange(rows), k), rng.integers(0, latents, rows * k))
        return csr_array((np.ones(rows * k, np.float32), fired), shape=(rows, latents))

    own, others = (Firings(codes(4096, k), codes(docs * places, k)) for k in (32, 20))
    counts, before = bootstrap_counts(docs, 1000, rng), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = seconds(lambda: coactivation(own, others, docs, counts, rng, second=own), repeats=1)
    held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    say(
        f"co-activation {latents} x {latents}, k 32 and 20, with its ceiling: {wall:.1f} s, {cpu:.1f} s of"
        f" processors, {held:.2f} GiB"
    )


D_MODEL, ATOMS, ACTIVE = 640, 512, 8
FIT, EVAL, PER_DOCUMENT = 30_000, 16_000, 200


def demo_task() -> tuple[LayerRows, list[tuple[Dictionary, Dictionary, list[LeafInputs]]]]:
    """Rows of the demo's size, half of whose atoms the references have, and per size a reference, a base
    control and two seeds of a dictionary that knows the truth but for a little noise, each the other's
    ceiling."""
    g = torch.Generator().manual_seed(0)
    scales = torch.exp(0.7 * torch.randn(D_MODEL, generator=g))
    base_atoms, own = (normalize(torch.randn(ATOMS, D_MODEL, generator=g) * scales, dim=1) for _ in range(2))
    atoms = torch.cat([base_atoms[: ATOMS // 2], own[: ATOMS // 2]])
    base, deltas = 10 * _codes(base_atoms, g) + 5, _codes(atoms, g)
    documents = np.arange(FIT + EVAL) // PER_DOCUMENT

    def near(rows: Tensor, data: Tensor) -> Dictionary:
        return dictionary_of(
            normalize(rows + 0.01 * torch.randn(rows.shape, generator=g), dim=1), data[:FIT], ACTIVE
        )

    shapes = []
    for n in (256, 512):
        one, other = near(atoms[:n], deltas), near(atoms[:n], deltas)
        seeds = [
            LeafInputs(a, {"second": b}, torch.randn(n, D_MODEL, generator=g))
            for a, b in ((one, other), (other, one))
        ]
        shapes.append((near(base_atoms[:n], base), near(base_atoms[:n], base), seeds))
    rows = LayerRows(
        delta_fit=deltas[:FIT].numpy(),
        delta_eval=deltas[FIT:].numpy(),
        base_fit=base[:FIT].numpy(),
        base_eval=base[FIT:].numpy(),
        fit_docs=documents[:FIT],
        eval_docs=documents[FIT:],
    )
    return rows, shapes


def _codes(atoms: Tensor, g: torch.Generator) -> Tensor:
    tokens = FIT + EVAL
    chosen = torch.rand(tokens, ATOMS, generator=g).topk(ACTIVE, 1).indices
    codes = torch.zeros(tokens, ATOMS).scatter_(1, chosen, 0.5 + torch.rand(tokens, ACTIVE, generator=g))
    return codes @ atoms + 0.05 * torch.randn(tokens, D_MODEL, generator=g)


BENCHES = {
    "match": bench_match,
    "large": bench_large,
    "pursue": bench_pursue,
    "coactivation": bench_coactivation,
    "leaf": bench_leaf,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()
