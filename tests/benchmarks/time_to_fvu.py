"""Seconds and steps that two sides take to the same held-out FVU, within 2 % on both sides of it.

Both train for the same number of steps on the same rows, batch and shape, each by its own recipe and
schedule, in turns of `every` steps, so that what else the machine does falls on both. After each turn, and
each step of the first two turns, the held-out FVU is looked at, which is not counted. The FVU that both reach
is the higher one of their lowest; each side's time is that of its first look at no more than 1.02 of it. A
side that fell past .98 of it between two looks was already better: the ratio is then a bound and says so, and
the FVUs are not equal.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from deltasae_ray.sae.names import Architecture
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer
from tests.benchmarks.peers import saelens, sparsify_coder

WITHIN = 0.02


@dataclass(frozen=True)
class Look:
    """One side after some steps."""

    steps: int
    seconds: float
    """Of training alone."""
    fvu: float


@dataclass(frozen=True)
class Side:
    """Something that trains."""

    step: Callable[[], object]
    fvu: Callable[[], float]
    """Of the held-out rows, now."""
    looks: list[Look] = field(default_factory=list)

    def turn(self, steps: int) -> None:
        before = self.looks[-1] if self.looks else Look(0, 0.0, float("inf"))
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        seconds = before.seconds + time.perf_counter() - start
        self.looks.append(Look(before.steps + steps, seconds, self.fvu()))

    @property
    def lowest(self) -> float:
        return min(look.fvu for look in self.looks)

    def first_at(self, target: float) -> Look:
        return next(look for look in self.looks if look.fvu <= (1 + WITHIN) * target)


def in_turns(sides: tuple[Side, Side], steps: int, every: int) -> None:
    stops = sorted({*range(1, min(2 * every, steps)), *range(every, steps, every), steps})
    for before, stop in pairwise([0, *stops]):
        for side in sides:
            side.turn(stop - before)


def told(name: str, theirs: Side, ours: Side) -> str:
    """A line of the table."""
    target = max(theirs.lowest, ours.lowest)
    peer, own = (side.first_at(target) for side in (theirs, ours))
    past = [look.fvu < (1 - WITHIN) * target for look in (peer, own)]
    verdict = {
        (False, False): "yes",
        (False, True): "no: ours is better by then, so at least",
        (True, False): "no: the peer is better by then, so at most",
        (True, True): "no: both are better by then",
    }[past[0], past[1]]
    parts = "".join(f"{look.fvu:10.4f} {look.steps:7} {look.seconds:8.1f}" for look in (peer, own))
    return (
        f"{name:18} {target:8.4f}{parts} {peer.seconds / own.seconds:10.2f}  {verdict} (lowest"
        f" {theirs.lowest:.4f} and {ours.lowest:.4f})"
    )


def time_to_fvu(x: Tensor, d_sae: int, k: int, batch: int, steps: int, every: int) -> None:
    """Prints the table of all peers; those that are not installed are left out and said."""
    fit, held = x[:-2048], x[-2048:]
    print(
        f"\nto the same held-out FVU within {WITHIN:.0%}, of schedules of {steps} steps, looked at every"
        f" {every}"
    )
    heads = f"{'FVU':>10} {'steps':>7} {'seconds':>8}"
    print(
        f"{'':18} {'target':>8}{'peer: ' + heads.strip():>28}{'ours: ' + heads.strip():>28} {'faster by':>10}"
        "  both within"
    )
    variance, recipe = (
        float((held - fit.mean(0)).square().sum()),
        Recipe(d_sae, k, batch_tokens=batch, steps=steps),
    )
    for name, architecture, make in peers(fit, held, recipe, variance):
        try:
            theirs = make()
        except ImportError as e:
            print(f"{name:18} left out: {e}")
            continue
        ours = our_side(fit, held, replace(recipe, architecture=architecture), variance)
        in_turns((theirs, ours), steps, every)
        print(told(name, theirs, ours))


def our_side(fit: Tensor, held: Tensor, recipe: Recipe, variance: float) -> Side:
    trainer = Trainer(fit, recipe, seed=0)

    @torch.no_grad()
    def fvu() -> float:
        """Of the weights as they are, as a peer's: BatchTopK chooses over the held-out rows."""
        return (
            float(trainer._forward(trainer._scaled(held)).error.square().sum())
            / trainer.scaling.scale**2
            / variance
        )

    return Side(trainer.step, fvu)


def peers(
    fit: Tensor, held: Tensor, recipe: Recipe, variance: float
) -> Iterator[tuple[str, Architecture, Callable[[], Side]]]:
    """(name, our architecture beside it, what makes its side)."""

    def by_saelens(architecture: str) -> Side:
        factor = (fit.shape[1] / fit.square().sum(1).mean()).sqrt()
        sae, step = saelens(fit, recipe.d_sae, recipe.k, recipe.batch_tokens, recipe.steps, architecture)

        @torch.no_grad()
        def fvu() -> float:
            return float((held - sae(held * factor) / factor).square().sum()) / variance

        return Side(step, fvu)

    def by_sparsify() -> Side:
        like = Trainer(fit, recipe, seed=0)
        coder, step = sparsify_coder(like)

        def one() -> None:
            step()
            like.steps_done += 1

        @torch.no_grad()
        def fvu() -> float:
            missed = held - like.scaling.mean - coder(like._scaled(held)).sae_out / like.scaling.scale
            return float(missed.square().sum()) / variance

        return Side(one, fvu)

    yield "SAELens topk", "topk", lambda: by_saelens("topk")
    yield "SAELens batchtopk", "batchtopk", lambda: by_saelens("batchtopk")
    yield "sparsify", "topk", by_sparsify
