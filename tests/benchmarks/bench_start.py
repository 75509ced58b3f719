"""What the delta-aware start is worth: the same recipe from other starts, on rows whose atoms are known, in
one process and in turns.

    ours       b_dec at the mean, encoder = decoderᵀ, decoder rows ± every direction that alone holds a tenth
    of the variance, the rest isotropic isotropic  without those directions encoder    encoder rows of their
    own instead of decoderᵀ origin     b_dec at the origin instead of the mean
    plain      the last two together: what one writes first

    python -m tests.benchmarks.bench_start [d_model=192 d_sae=512 k=8 rows=12288 steps=400 batch=512 seeds=2
    threads=1] python -m tests.benchmarks.bench_start root=/a/study adapter=r16 layer=12 …      (deltas of a
    harvest in place of planted rows)

Per start: share of latents that are dead at the end, held-out FVU, steps to the held-out FVU that `plain`
ends with, and the mean, over the true atoms, of the largest cosine to a living latent. Two worlds: sparse
atoms with three massive coordinates and a mean, as deltas have them, and sparse atoms alone.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.start import random_rows
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.opening import open_shards

LOOKS = 20
"""Times that the held-out FVU is looked at."""


@dataclass(frozen=True)
class Rows:
    fit: Tensor
    held_out: Tensor
    atoms: Tensor | None = None


def planted(rows: int, d_model: int, seed: int, *, massive: bool) -> Rows:
    """400 unit atoms of Zipfian frequency, 8 active on average with log-normal codes; then three massive
    coordinates and a mean."""
    g = torch.Generator().manual_seed(
        1_000 + seed
    )  # with a trainer's own seed, its random rows would be these atoms
    atoms = F.normalize(torch.randn(400, d_model, generator=g), dim=1)
    p = torch.arange(1, 401).float().pow(-0.7)
    fires = torch.rand(rows + 2048, 400, generator=g) < (8 * p / p.sum()).clamp(max=0.5)
    x = fires * torch.randn(fires.shape, generator=g).mul(0.5).exp() @ atoms + 0.01 * torch.randn(
        len(fires), d_model, generator=g
    )
    if massive:
        x[:, :3] += 6 * torch.randn(len(x), 3, generator=g).exp() * torch.tensor([1.0, -1.0, 1.0])
        x += 2 * F.normalize(torch.randn(d_model, generator=g), dim=0)
    return Rows(x[:rows], x[rows:], atoms)


def harvested(root: str, adapter: str, layer: int) -> Rows:
    shards = open_shards(root)
    fit, held = (
        torch.as_tensor(shards.read(layer, adapter, split=s)[shards.tokens(s).position > 0])
        for s in ("fit", "eval")
    )
    return Rows(fit.float(), held.float())


def isotropic(trainer: Trainer, g: torch.Generator) -> None:
    w = trainer.weights
    w.decoder.copy_(random_rows(*w.decoder.shape, g))
    w.encoder.copy_(w.decoder)


def encoder(trainer: Trainer, g: torch.Generator) -> None:
    trainer.weights.encoder.copy_(random_rows(*trainer.weights.encoder.shape, g))


def origin(trainer: Trainer, _: torch.Generator) -> None:
    trainer.weights.b_dec.copy_(-trainer.scaling.scale * trainer.scaling.mean)


def plain(trainer: Trainer, g: torch.Generator) -> None:
    isotropic(trainer, g)
    encoder(trainer, g)
    origin(trainer, g)


STARTS: dict[str, Callable[[Trainer, torch.Generator], None]] = {
    "ours": lambda *_: None,
    "isotropic": isotropic,
    "encoder": encoder,
    "origin": origin,
    "plain": plain,
}


@dataclass(frozen=True)
class Run:
    dead: float
    curve: tuple[float, ...]
    """Held-out FVU at every look."""
    cosine: float | None


def run(rows: Rows, recipe: Recipe, seed: int, start: Callable[[Trainer, torch.Generator], None]) -> Run:
    trainer = Trainer(rows.fit, recipe, seed)
    with torch.no_grad():
        start(trainer, torch.Generator().manual_seed(10_000 + seed))
    curve = []
    while not trainer.done:
        trainer.step()
        if trainer.steps_done % (recipe.steps // LOOKS) == 0:
            curve.append(held_out(trainer.finish(), rows.held_out).fvu)
    made = trainer.finish()
    cosine = (
        None
        if rows.atoms is None
        else float((rows.atoms @ made.W_dec[made.alive].T).max(dim=1).values.mean())
    )
    return Run(1 - float(made.alive.double().mean()), tuple(curve), cosine)


def table(name: str, worlds: list[Rows], recipe: Recipe) -> None:
    runs = {
        start: [run(rows, recipe, seed, change) for seed, rows in enumerate(worlds)]
        for start, change in STARTS.items()
    }
    print(
        f"\n| {name} | dead | held-out FVU | steps to the FVU of plain | cosine of the atoms"
        " |\n|---|---|---|---|---|"
    )
    for start, found in runs.items():
        reached = []
        for one, other in zip(found, runs["plain"], strict=True):
            looks = [i for i, fvu in enumerate(one.curve) if fvu <= other.curve[-1]]
            reached.append(str((looks[0] + 1) * (recipe.steps // LOOKS)) if looks else "never")
        dead = " ".join(f"{100 * one.dead:.1f} %" for one in found)
        fvus = " ".join(f"{one.curve[-1]:.4f}" for one in found)
        cosines = [one.cosine for one in found if one.cosine is not None]
        told = f"{statistics.mean(cosines):.3f}" if cosines else "unknown"
        print(f"| {start} | {dead} | {fvus} | {' '.join(reached)} | {told} |", flush=True)


def main(
    root: str = "", adapter: str = "", layer: int = 0, d_model: int = 192, d_sae: int = 512, k: int = 8,
    rows: int = 12_288, steps: int = 400,
    batch: int = 512, seeds: int = 2, threads: int = 1,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    recipe = Recipe(d_sae, k, batch_tokens=batch, steps=steps)
    print(f"d_sae {d_sae}, k {k}, {steps} steps of {batch}, {seeds} seeds, {threads} threads")
    if root:
        table(f"{adapter} layer {layer}", [harvested(root, adapter, layer)] * seeds, recipe)
        return
    for name, massive in (("atoms, massive coordinates, mean", True), ("atoms alone", False)):
        table(name, [planted(rows, d_model, seed, massive=massive) for seed in range(seeds)], recipe)


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    main(**{name: value if name in ("root", "adapter") else int(value) for name, value in given.items()})
