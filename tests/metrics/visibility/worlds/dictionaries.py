"""Dictionaries of a planted world, known or fitted, and what the decision says of it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.metrics.visibility.visible import Visibility, visibility
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer
from tests.metrics.visibility.worlds.rows import Planted, units


def dictionary_of(atoms: Tensor, rows: Tensor, k: int = 8) -> Dictionary:
    """A TopK dictionary that knows these atoms, with what its latents do on `rows`."""
    ones = torch.ones(len(atoms))
    made = Dictionary(
        atoms.T.contiguous(),
        atoms.contiguous(),
        0 * ones,
        rows.mean(0),
        "topk",
        k,
        ones,
        ones,
        mean=rows.mean(0),
    )
    return replace(made.measured(rows), meta={"rows": len(rows)})


def fitted(rows: Tensor, seed: int, *, d_sae: int = 256, k: int = 8, steps: int = 500) -> Dictionary:
    """What the product's own recipe learns from rows, in few steps."""
    trainer = Trainer(rows, Recipe(d_sae, k, lr=3e-3, batch_tokens=1024, steps=steps), 10_000 + seed)
    while not trainer.done:
        trainer.step()
    return trainer.finish()


@dataclass(frozen=True, eq=False)
class Fitted:
    """Dictionaries of one world."""

    dictionary: Dictionary
    second: tuple[Dictionary, ...]
    reference: Dictionary
    base_dictionaries: tuple[Dictionary, ...]


def fit_all(
    world: Planted,
    seed: int,
    *,
    k: int = 8,
    d_sae: int = 256,
    reference: str = "atoms",
    seconds: int = 1,
    bases: int = 3,
) -> Fitted:
    """Delta dictionaries of several seeds, the reference (its atoms, or "fitted" to base activations) and
    base dictionaries."""
    deltas, base = world.deltas[: world.fit], world.base[: world.fit]
    own = [fitted(deltas, 100 * seed + i, d_sae=d_sae, k=k) for i in range(1 + seconds)]
    size = 2 * 2 ** int(np.ceil(np.log2(len(world.reference))))
    others = [
        fitted(base, 100 * seed + 50 + i, d_sae=size, steps=300)
        for i in range(bases + (reference == "fitted"))
    ]
    given = dictionary_of(world.reference, base) if reference == "atoms" else others.pop()
    return Fitted(own[0], tuple(own[1:]), given, tuple(others))


def known_all(
    world: Planted, seed: int, *, k: int = 8, off: float = 0.15, junk: int = 16, bases: int = 3
) -> Fitted:
    """Dictionaries that nobody had to fit: the truth with an error of length `off` in every row, and junk of
    each seed's own.

    A quick stand-in for fitted ones: latents are good or junk, where training leaves mixtures of features
    too.
    """
    g = torch.Generator().manual_seed(1_000_003 + seed)
    d, fit = world.deltas.shape[1], slice(0, world.fit)

    def near(atoms: Tensor, rows: Tensor) -> Dictionary:
        found = F.normalize(atoms + off * units(len(atoms), d, g), dim=1)
        return dictionary_of(torch.cat([found, units(junk, d, g)]), rows[fit], k)

    own = [near(world.atoms, world.deltas) for _ in range(2)]
    others = [near(world.base_atoms, world.base) for _ in range(bases)]
    return Fitted(own[0], (own[1],), dictionary_of(world.reference, world.base[fit], k), tuple(others))


def half_fitted(world: Planted, seed: int, *, d_sae: int = 128, steps: int = 300) -> Fitted:
    """Delta dictionaries as the product fits them; the truth but for an error on the side of the base."""
    known, fit = known_all(world, seed), world.deltas[: world.fit]
    own = [fitted(fit, 100 * seed + i, d_sae=d_sae, steps=steps) for i in range(2)]
    return replace(known, dictionary=own[0], second=(own[1],))


def decided(world: Planted, found: Fitted, seed: int = 0, **other: object) -> Visibility:
    """What `visibility` says of a world and its dictionaries."""
    fit, rest = slice(0, world.fit), slice(world.fit, None)
    given: dict = {
        "base_dictionaries": found.base_dictionaries,
        "second": found.second,
        "training": world.deltas[fit],
        "training_base": world.base[fit],
        "doc_ids": world.doc_ids[rest],
        "token_ids": world.token_ids[rest],
        "positions": world.positions[rest],
        "corpora": None if world.corpora is None else world.corpora[rest],
        "seed": seed,
    }
    return visibility(
        world.deltas[rest], world.base[rest], found.dictionary, found.reference, **{**given, **other}
    )
