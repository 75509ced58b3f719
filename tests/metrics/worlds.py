"""Planted worlds: deltas whose relation to the reference is known, and the verdict that is right for them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.behaviour.run import behaviours
from deltasae_ray.analyses.divergence.figures import compare
from deltasae_ray.analyses.geometry_figures import Label, judge_missing
from deltasae_ray.analyses.verdict import LeafFigures, verdict
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.metrics.inputs import LayerInputs, LeafInputs, Settings
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer

D_MODEL, ATOMS, ACTIVE, NOISE = 64, 64, 4, 0.01
FIT_TOKENS, EVAL_TOKENS, TOKENS_PER_DOCUMENT = 20_000, 4_000, 40
SETTINGS = Settings(k=4, code_tokens=1024, bootstrap=300)
CHANGED = [Behaviour("adapted text", Measure(-0.3, ci=(-0.35, -0.25)), Measure(0.2, ci=(0.18, 0.22)))]
UNCHANGED = [
    Behaviour("adapted text", Measure(0.0002, ci=(-0.001, 0.001)), Measure(0.0001, ci=(0.00005, 0.0002)))
]


@dataclass(frozen=True)
class World:
    """Deltas of training and evaluation tokens, and the reference's atoms."""

    deltas: Tensor
    """[FIT_TOKENS + EVAL_TOKENS, D_MODEL]"""
    reference: Tensor
    right: Label
    behaviour: tuple[Behaviour, ...] | None = tuple(CHANGED)
    """What the gate found; None where it is to be asked (`gated`)."""
    fit_tokens: int = FIT_TOKENS


def units(rows: int, g: torch.Generator, basis: Tensor | None = None) -> Tensor:
    """Random unit rows, of the whole space or of the span of the rows of `basis`."""
    drawn = torch.randn(rows, D_MODEL if basis is None else len(basis), generator=g)
    return F.normalize(drawn if basis is None else drawn @ basis, dim=1)


def sparse(atoms: Tensor, tokens: int, active: int, g: torch.Generator) -> Tensor:
    """Combinations of `active` atoms per token with coefficients in [0.5, 1.5]; documents differ in which
    atoms they prefer."""
    documents = -(-tokens // TOKENS_PER_DOCUMENT)
    liking = torch.randn(documents, len(atoms), generator=g).repeat_interleave(TOKENS_PER_DOCUMENT, 0)[
        :tokens
    ]
    gumbel = -torch.log(-torch.log(torch.rand(tokens, len(atoms), generator=g).clamp(1e-6, 1 - 1e-6)))
    chosen = (0.5 * liking + gumbel).topk(active, 1).indices
    codes = torch.zeros(tokens, len(atoms)).scatter_(1, chosen, 0.5 + torch.rand(tokens, active, generator=g))
    return codes @ atoms + NOISE * torch.randn(tokens, D_MODEL, generator=g)


TOKENS = FIT_TOKENS + EVAL_TOKENS


def aligned(g: torch.Generator) -> World:
    atoms = units(ATOMS, g)
    return World(sparse(atoms, TOKENS, ACTIVE, g), torch.cat([atoms, units(ATOMS, g)]), "VISIBLE")


def negated(g: torch.Generator) -> World:
    world = aligned(g)
    return World(world.deltas, -world.reference, "VISIBLE")


def split_in_three(g: torch.Generator) -> World:
    """The reference has three near copies (cosine .96) of each atom and not the atom."""
    atoms = units(ATOMS, g)
    copies = F.normalize(atoms.repeat(3, 1) + 0.3 * units(3 * ATOMS, g), dim=1)
    return World(sparse(atoms, TOKENS, ACTIVE, g), copies, "VISIBLE")


def half(g: torch.Generator) -> World:
    atoms = units(ATOMS, g)
    return World(
        sparse(atoms, TOKENS, ACTIVE, g), torch.cat([atoms[: ATOMS // 2], units(ATOMS, g)]), "PARTLY VISIBLE"
    )


def novel(g: torch.Generator) -> World:
    return World(sparse(units(ATOMS, g), TOKENS, ACTIVE, g), units(2 * ATOMS, g), "NOT VISIBLE")


def same_subspace(g: torch.Generator) -> World:
    """Both dictionaries live in the same third of the space, and share no atom."""
    basis = torch.linalg.qr(torch.randn(D_MODEL, 24, generator=g)).Q.T
    return World(sparse(units(ATOMS, g, basis), TOKENS, ACTIVE, g), units(2 * ATOMS, g, basis), "NOT VISIBLE")


def three_coordinates(g: torch.Generator) -> World:
    """Three coordinates without features hold four fifths of the energy; the rest is aligned. A dictionary
    that is fitted to such deltas finds the rest worse than the reference does (M is −.2 outside the three), so
    that M has no label."""
    world = aligned(g)
    energy = float(world.deltas.square().sum(1).mean())
    loud = torch.randn(TOKENS, 3, generator=g) * torch.tensor([0.6, 0.15, 0.05]).mul(5 * energy).sqrt()
    deltas = world.deltas.clone()
    deltas[:, :3] += loud
    return World(deltas, world.reference, "INCONCLUSIVE")


def constant_shift(g: torch.Generator) -> World:
    """One vector for all tokens, unrelated to the reference or (half of the seeds) one of its atoms."""
    reference = units(2 * ATOMS, g)
    hidden = bool(torch.rand(1, generator=g) < 0.5)
    shift = units(1, g) if hidden else reference[:1]
    return World(
        shift + 0.02 * torch.randn(TOKENS, D_MODEL, generator=g),
        reference,
        "NOT VISIBLE" if hidden else "VISIBLE",
    )


def rare(g: torch.Generator) -> World:
    """Each atom fires on 0.1 % of the tokens; the reference has them."""
    atoms = units(ATOMS, g)
    fires = torch.rand(TOKENS, ATOMS, generator=g) < 1e-3
    codes = fires * (0.5 + torch.rand(TOKENS, ATOMS, generator=g))
    deltas = codes @ atoms + 0.1 * NOISE * torch.randn(TOKENS, D_MODEL, generator=g)
    return World(deltas, torch.cat([atoms, units(ATOMS, g)]), "VISIBLE")


def no_effect(g: torch.Generator) -> World:
    world = novel(g)
    return World(1e-4 * world.deltas, world.reference, "NO EFFECT", behaviour=None)


def gaussian(g: torch.Generator) -> World:
    """Correlated Gaussian deltas: second moments and nothing else."""
    mixing = torch.randn(D_MODEL, D_MODEL, generator=g) * torch.linspace(1.5, 0.1, D_MODEL)
    return World(
        torch.randn(TOKENS, D_MODEL, generator=g) @ mixing.T / 8, units(2 * ATOMS, g), "INCONCLUSIVE"
    )


def few_tokens(g: torch.Generator) -> World:
    world = half(g)
    return World(world.deltas, world.reference, "INCONCLUSIVE", fit_tokens=200)


_MADE = (
    aligned,
    negated,
    split_in_three,
    half,
    novel,
    same_subspace,
    three_coordinates,
    constant_shift,
    rare,
    no_effect,
    gaussian,
    few_tokens,
)
WORLDS: dict[str, Callable[[torch.Generator], World]] = {make.__name__: make for make in _MADE}


def dictionary_of(atoms: Tensor, rows: Tensor, k: int = ACTIVE) -> Dictionary:
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


def fitted(
    rows: Tensor, seed: int, *, d_sae: int = 2 * ATOMS, k: int = ACTIVE, steps: int = 600
) -> Dictionary:
    """What the product's own recipe learns from rows, in few steps; by a seed apart from the worlds', whose
    atoms would be its random rows."""
    trainer = Trainer(rows, Recipe(d_sae, k, lr=3e-3, batch_tokens=512, steps=steps), 10_000 + seed)
    while not trainer.done:
        trainer.step()
    return trainer.finish()


def inputs_of(world: World, g: torch.Generator) -> LayerInputs:
    """Shards' worth of rows: base activations are combinations of the reference's atoms, ten times as large
    as the deltas."""
    base = 10 * sparse(world.reference, TOKENS, ACTIVE, g) + 3.0
    documents = (torch.arange(TOKENS) // TOKENS_PER_DOCUMENT).numpy()
    fit = slice(0, world.fit_tokens)
    return LayerInputs(
        delta_fit=world.deltas[fit].numpy(),
        delta_eval=world.deltas[FIT_TOKENS:].numpy(),
        base_fit=base[fit].numpy(),
        base_eval=base[FIT_TOKENS:].numpy(),
        fit_docs=documents[fit],
        eval_docs=documents[FIT_TOKENS:],
        reference=dictionary_of(world.reference, base[:FIT_TOKENS]),
    )


def gated(inputs: LayerInputs, vocabulary: int = 32) -> list[Behaviour]:
    """What the product's own gate says of these deltas, added to the base activations in front of a random
    language head."""
    g = torch.Generator().manual_seed(0)
    head, base, delta = (
        units(vocabulary, g),
        torch.from_numpy(inputs.base_eval),
        torch.from_numpy(inputs.delta_eval),
    )
    before, after = (F.log_softmax(x @ head.T, 1) for x in (base, base + delta))
    labels = torch.multinomial(before.exp(), 1, generator=g)
    found = {
        "ce": -after.gather(1, labels)[:, 0],
        "ce_base": -before.gather(1, labels)[:, 0],
        "kl": (after.exp() * (after - before)).sum(1),
    }
    docs, rows = np.asarray(inputs.eval_docs), []
    for doc in np.unique(docs):
        here = torch.from_numpy(docs == doc)
        sums = {name: float(x[here].double().sum()) for name, x in found.items()}
        rows.append(
            {"adapter": "r4", "corpus": DOMAIN, "doc_id": str(doc), "positions": int(here.sum()), **sums}
        )
    return behaviours(rows, "r4", bootstrap=300, seed=0)


def judged(name: str, seed: int) -> tuple[World, tuple[Label, str], dict[str, Measure]]:
    """The world, the label of its missing share (or that it has no effect) with what is said, and all
    measures, with a dictionary fitted to its deltas."""
    g = torch.Generator().manual_seed(seed)
    world = WORLDS[name](g)
    inputs = inputs_of(world, g)
    dictionary = fitted(world.deltas[: world.fit_tokens], seed)
    measures = compare(inputs, LeafInputs(dictionary), SETTINGS)
    leaf = LeafFigures("r4", 0, len(dictionary.W_dec), dictionary.k, "topk", seed, measures)
    behaviour = gated(inputs) if world.behaviour is None else world.behaviour
    found, whole = judge_missing(leaf), verdict("r4", [leaf], behaviour)
    label = whole.label if whole.label == "NO EFFECT" else found.label
    return world, (label, f"{found.measure:.2f} {found.reason}"), measures
