"""One training step of a dictionary, side by side in one process on the same rows, batch, shape, dtype and threads:

    limit      the encoder product alone: batch × d_model × d_sae in fp32
    topk       Trainer.step: reading the batch, scaling it, sparse forward and backward, fused Adam, unit rows, counters
    batchtopk  the same, choosing over the batch
    dense      the same weights and loss with dense codes through autograd and fused Adam, as one writes it first
    SAELens    SAETrainer.step of its TopK and BatchTopK training classes, dense as is their default
    sparsify   SparseCoder's forward and backward, its gradient projection and unit rows, fused Adam (its own trainer needs a
               language model in the loop)
    codes      finding the codes of a batch: encoder product and top-k in fp32, beside bf16 screening with exact fp32 codes

    python -m tests.benchmarks.bench_fit [d_model=640 d_sae=4096 k=32 batch=2048 rounds=15 threads=0 train=0 every=25]

Rounds are interleaved, and ratios are medians over the pairs of one round, since the machine may be shared. `train=N` then also
trains SAELens' classes and sparsify for N steps, each by its own recipe, and ours for at most as many until its held-out FVU is
within 2 % of theirs: seconds of training to an equal FVU. What is not installed (extra [bench]) is left out and said.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.sae import screening
from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.threads import cores
from deltasae_ray.sae.trainer import Trainer

ROWS = 16_384


def rows(d_model: int, atoms: int, active: int, count: int = ROWS) -> Tensor:
    """Zipfian sparse combinations of unit atoms, whose directions lie mostly in a quarter of the space."""
    g = torch.Generator().manual_seed(0)
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


def saelens(x: Tensor, d_sae: int, k: int, batch: int, steps: int, architecture: str = "topk") -> tuple[object, Callable[[], None]]:
    """(its SAE, its step) with the settings of its TopK tutorial: lr 3e-4, linear decay over the last fifth."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    scaled = x * (x.shape[1] / x.square().sum(1).mean()).sqrt()
    kind, config = get_sae_training_class(architecture)
    sae = kind(config(d_in=x.shape[1], d_sae=d_sae, k=k))
    cfg = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=3e-4, lr_end=3e-5, lr_decay_steps=steps // 5
    )

    def batches() -> Iterator[Tensor]:
        while True:
            for part in scaled[torch.randperm(len(scaled))].split(batch):
                if len(part) == batch:
                    yield part

    data = batches()
    trainer = SAETrainer(cfg, sae, data)
    return sae, lambda: trainer.step(next(data)) and None


def sparsify(like: Trainer) -> Callable[[], None]:
    return sparsify_coder(like)[1]


def sparsify_coder(like: Trainer) -> tuple[object, Callable[[], None]]:
    """(its coder, its step) on the batches that `like` would take next: scaled and centred, in the same order."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(like.x.shape[1], SparseCoderConfig(num_latents=like.recipe.d_sae, k=like.recipe.k))
    # Its trainer's rule: 2e-4 at 2^14 latents, growing as the root of fewer.
    optimizer = torch.optim.Adam(coder.parameters(), lr=2e-4 / (like.recipe.d_sae / 2**14) ** 0.5, fused=True)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(like.next_batch()).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return coder, step


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main(d_model: int = 640, d_sae: int = 4096, k: int = 32, batch: int = 2048, rounds: int = 15, threads: int = 0, train: int = 0, every: int = 25) -> None:
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
        runs |= {f"SAELens {name}": saelens(x, d_sae, k, batch, 10**4, name)[1] for name in ("topk", "batchtopk")}
    except ImportError as e:
        print(f"SAELens is left out: {e}")
    try:
        runs["sparsify"] = sparsify(ours)
    except ImportError as e:
        print(f"sparsify is left out: {e}")
    found = screening.topk(y, weight, bias, torch.zeros(d_model), k)[1].latents.view(-1, k)
    same = (found.sort().values == runs["codes fp32"]().indices.sort().values).all(dim=1).float().mean()  # type: ignore[attr-defined]
    times = measure(runs, rounds)
    print(f"d_model {d_model}, d_sae {d_sae}, k {k}, batch {batch}, fp32, {torch.get_num_threads()} threads, {rounds} rounds")
    print(f"{'':18} {'median ms':>10} {'least ms':>9} {'topk is faster by':>18}")
    for name, values in times.items():
        ratio = statistics.median(v / t for v, t in zip(values, times["topk"], strict=True))
        print(f"{name:18} {statistics.median(values):10.1f} {min(values):9.1f} {ratio:18.2f}")
    print(f"bf16 screening finds the codes of fp32 in {same:.1%} of the rows")
    if train:
        to_equal_fvu(x, d_sae, k, batch, train, every)


def to_equal_fvu(x: Tensor, d_sae: int, k: int, batch: int, steps: int, every: int) -> None:
    """Seconds of training until the held-out FVU is within 2 % of what a peer reached in `steps`, each by its own recipe.

    Ours is looked at every `every` steps of a schedule of `steps`; looking is not counted.
    """
    fit, held = x[:-2048], x[-2048:]
    variance = (held - fit.mean(0)).square().sum()
    print(f"\nto an equal held-out FVU, peers' after {steps} steps")
    print(f"{'peer':18} {'its FVU':>8} {'its s':>7} {'our FVU':>8} {'our s':>7} {'steps':>6} {'faster by':>10}")
    for name, reached in peers(fit, held, d_sae, k, batch, steps):
        try:
            theirs, seconds = reached()
        except ImportError as e:
            print(f"{name:18} left out: {e}")
            continue
        missed, architecture = theirs.square().sum() / variance, "batchtopk" if "batchtopk" in name else "topk"
        trainer = Trainer(fit, Recipe(d_sae, k, architecture, batch_tokens=batch, steps=steps), seed=0)
        spent, found = 0.0, float("inf")
        while not trainer.done and found > 1.02 * missed:
            start = time.perf_counter()
            for _ in range(min(every, steps - trainer.steps_done)):
                trainer.step()
            spent += time.perf_counter() - start
            found = held_out(trainer.finish(), held).fvu
        print(f"{name:18} {missed:8.4f} {seconds:7.1f} {found:8.4f} {spent:7.1f} {trainer.steps_done:6} {seconds / spent:10.2f}")


def peers(
    fit: Tensor, held: Tensor, d_sae: int, k: int, batch: int, steps: int
) -> Iterator[tuple[str, Callable[[], tuple[Tensor, float]]]]:
    """(name, a function that trains it and gives what it misses of the held-out rows and the seconds of training)."""

    def by_saelens(architecture: str) -> tuple[Tensor, float]:
        factor = (fit.shape[1] / fit.square().sum(1).mean()).sqrt()
        sae, step = saelens(fit, d_sae, k, batch, steps, architecture)
        seconds = _seconds(step, steps)
        with torch.no_grad():
            return held - sae(held * factor) / factor, seconds  # type: ignore[operator]

    def by_sparsify() -> tuple[Tensor, float]:
        like = Trainer(fit, Recipe(d_sae, k, batch_tokens=batch, steps=steps), seed=0)
        coder, step = sparsify_coder(like)
        seconds = 0.0
        for like.steps_done in range(steps):
            seconds += _seconds(step, 1)
        with torch.no_grad():
            return held - like.scaling.mean - coder(like._scaled(held)).sae_out / like.scaling.scale, seconds  # type: ignore[operator]

    yield "SAELens topk", lambda: by_saelens("topk")
    yield "SAELens batchtopk", lambda: by_saelens("batchtopk")
    yield "sparsify", by_sparsify


def _seconds(step: Callable[[], object], steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])})
