"""One training step of a dictionary, side by side in one process on the same rows, batch, shape, dtype and
threads:

    limit      the encoder product alone: batch × d_model × d_sae in fp32
    topk       Trainer.step: reading the batch, scaling it, sparse forward and backward, fused Adam, unit
    rows, counters batchtopk  the same, choosing over the batch dense      the same weights and loss with
    dense codes through autograd and fused Adam, as one writes it first SAELens    SAETrainer.step of its TopK
    and BatchTopK training classes, dense as is their default sparsify   SparseCoder's forward and backward,
    its gradient projection and unit rows, fused Adam (its own trainer needs a
               language model in the loop)
    codes      finding the codes of a batch: encoder product and top-k in fp32, beside bf16 screening with
    exact fp32 codes

    python -m tests.benchmarks.bench_fit [d_model=640 d_sae=4096 k=32 batch=2048 rounds=15 threads=0 train=0
    every=10]

Rounds are interleaved, and ratios are medians over the pairs of one round, since the machine may be shared.
`train=N` compares training itself, in `time_to_fvu`. What is not installed (extra [bench]) is left out and
said.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.sae import screening
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.threads import cores
from deltasae_ray.sae.trainer import Trainer
from tests.benchmarks.peers import saelens, sparsify_coder
from tests.benchmarks.time_to_fvu import time_to_fvu

ROWS = 16_384


def rows(d_model: int, atoms: int, active: int, count: int = ROWS) -> Tensor:
    """Zipfian sparse combinations of unit atoms, whose directions lie mostly in a quarter of the space."""
    g = torch.Generator().manual_seed(1_000)  # a trainer of this seed would start from these very atoms
    spectrum = torch.arange(1, d_model + 1).float().div(d_model / 4).clamp_min(1).pow(-2)
    truth = F.normalize(torch.randn(atoms, d_model, generator=g) * spectrum, dim=1)
    p = torch.arange(1, atoms + 1).float().pow(-0.7)
    p = (p / p.sum() * active).clamp(max=0.5)
    blocks = []
    for _ in range(count // 1024):
        z = (torch.rand(1024, atoms, generator=g) < p) * torch.randn(1024, atoms, generator=g).mul(0.5).exp()
        blocks.append(z @ truth + 0.01 * torch.randn(1024, d_model, generator=g))
    return torch.cat(blocks)


class Dense:
    """The step as one writes it first."""

    def __init__(self, like: Trainer) -> None:
        self.k, self.like = like.recipe.k, like
        self.weights = [w.detach().clone().requires_grad_() for w in like.weights[:4]]
        self.optimizer = torch.optim.Adam(self.weights, lr=1e-3, fused=True)

    def step(self) -> None:
        y = self.like.next_batch()
        encoder, decoder, b_enc, b_dec = self.weights
        values, indices = torch.topk((y - b_dec) @ encoder.T + b_enc, self.k, dim=1)
        z = torch.zeros(len(y), len(encoder)).scatter(1, indices, values.relu())
        loss = (y - z @ decoder - b_dec).square().sum() / y.square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True))


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main(
    d_model: int = 640,
    d_sae: int = 4096,
    k: int = 32,
    batch: int = 2048,
    rounds: int = 15,
    threads: int = 0,
    train: int = 0,
    every: int = 10,
) -> None:
    torch.set_num_threads(threads or cores())
    x = rows(d_model, min(2 * d_sae, 8192), 24)
    ours = Trainer(x, Recipe(d_sae, k, batch_tokens=batch, steps=10**6), seed=0)
    over_batch = Trainer(x, Recipe(d_sae, k, "batchtopk", batch_tokens=batch, steps=10**6), seed=0)
    y, weight, bias = ours.next_batch(), ours.weights.encoder.detach().clone(), torch.zeros(d_sae)
    runs: dict[str, Callable[[], object]] = {
        "limit": lambda: torch.addmm(bias, y, weight.T),
        "topk": ours.step,
        "batchtopk": over_batch.step,
        "dense": Dense(ours).step,
        "codes fp32": lambda: torch.addmm(bias, y, weight.T).topk(k, dim=1, sorted=False),
        "codes bf16": lambda: screening.topk(y, weight, bias, torch.zeros(d_model), k),
    }
    try:
        runs |= {
            f"SAELens {name}": saelens(x, d_sae, k, batch, 10**4, name)[1] for name in ("topk", "batchtopk")
        }
    except ImportError as e:
        print(f"SAELens is left out: {e}")
    try:
        runs["sparsify"] = sparsify_coder(ours)[1]
    except ImportError as e:
        print(f"sparsify is left out: {e}")
    found = screening.topk(y, weight, bias, torch.zeros(d_model), k)[1].latents.view(-1, k)
    same = (found.sort().values == runs["codes fp32"]().indices.sort().values).all(dim=1).float().mean()  # type: ignore[attr-defined]
    times = measure(runs, rounds)
    print(
        f"d_model {d_model}, d_sae {d_sae}, k {k}, batch {batch}, fp32, {torch.get_num_threads()} threads,"
        f" {rounds} rounds"
    )
    print(f"{'':18} {'median ms':>10} {'least ms':>9} {'topk is faster by':>18}")
    for name, values in times.items():
        ratio = statistics.median(v / t for v, t in zip(values, times["topk"], strict=True))
        print(f"{name:18} {statistics.median(values):10.1f} {min(values):9.1f} {ratio:18.2f}")
    print(f"bf16 screening finds the codes of fp32 in {same:.1%} of the rows")
    if train:
        time_to_fvu(x, d_sae, k, batch, train, every)


if __name__ == "__main__":
    main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])})
