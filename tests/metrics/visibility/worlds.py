"""Planted worlds of the visibility decision: base activations, deltas and a reference whose relation is
known."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.metrics.visibility.visible import Visibility, visibility
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer

VOCABULARY = 60


@dataclass(frozen=True, eq=False)
class Planted:
    """Rows of one world; the first `fit` of them are training rows."""

    deltas: Tensor
    base: Tensor
    fit: int
    doc_ids: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray
    atoms: Tensor
    """Features of the deltas, unit rows."""
    held: np.ndarray
    """Which of them the reference holds."""
    reference: Tensor
    """Atoms of the reference, unit rows."""
    base_atoms: Tensor
    """What base activations are made of, unit rows."""
    kinds: tuple[str | None, ...] = ()
    """Scaling class of each feature."""
    corpora: np.ndarray | None = None
    dense: Tensor | None = field(default=None, repr=False)
    """Orthonormal rows that span what is dense."""

    @property
    def share(self) -> float:
        """Share of the features that the reference holds."""
        return float(self.held.mean())


def units(rows: int, d: int, g: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(rows, d, generator=g), dim=1)


@dataclass(frozen=True, eq=False)
class Rows:
    """Documents, tokens and positions of `total` rows, and what features they prefer."""

    total: int
    per_document: int
    g: torch.Generator

    def __post_init__(self) -> None:
        weights = 1 / torch.arange(1, VOCABULARY + 1)
        object.__setattr__(
            self, "tokens", torch.multinomial(weights, self.total, replacement=True, generator=self.g)
        )

    @property
    def doc_ids(self) -> np.ndarray:
        return np.arange(self.total) // self.per_document

    @property
    def positions(self) -> np.ndarray:
        return np.arange(self.total) % self.per_document

    def codes(
        self,
        atoms: int,
        active: int,
        amplitude: tuple[float, float],
        liking: float = 0.5,
        by_token: float = 0.5,
    ) -> Tensor:
        """Codes [row, atom] with `active` atoms on every row; documents and tokens differ in which they
        prefer."""
        documents = -(-self.total // self.per_document)
        likes = liking * torch.randn(documents, atoms, generator=self.g)[torch.from_numpy(self.doc_ids)]
        likes = likes + by_token * torch.randn(VOCABULARY, atoms, generator=self.g)[self.tokens]
        gumbel = -torch.log(-torch.log(torch.rand(self.total, atoms, generator=self.g).clamp(1e-6, 1 - 1e-6)))
        chosen = (likes + gumbel).topk(active, 1).indices
        low, high = amplitude
        return torch.zeros(self.total, atoms).scatter_(
            1, chosen, low + (high - low) * torch.rand(self.total, active, generator=self.g)
        )

    def rare(self, rate: float, amplitude: tuple[float, float]) -> Tensor:
        """Codes [row] that fire on a share `rate` of the rows, each by itself."""
        low, high = amplitude
        fires = torch.rand(self.total, generator=self.g) < rate
        return fires * (low + (high - low) * torch.rand(self.total, generator=self.g))


def _planted(rows: Rows, fit: int, deltas: Tensor, base: Tensor, **known: object) -> Planted:
    return Planted(deltas, base, fit, rows.doc_ids, rows.tokens.numpy(), rows.positions, **known)


def dense_part(rows: Rows, d: int, rank: int, energy: float) -> tuple[Tensor, Tensor]:
    """Gaussian rows of one rank and E‖x‖², and the orthonormal rows that span them; eigenvalues fall from 1
    to 1/2."""
    basis = torch.linalg.qr(torch.randn(d, rank, generator=rows.g)).Q.T
    spread = torch.linspace(1, 0.5, rank)
    return (
        torch.randn(rows.total, rank, generator=rows.g) * (energy * spread / spread.sum()).sqrt() @ basis,
        basis,
    )


def mixture(
    seed: int,
    *,
    share: float = 0.5,
    dense: float = 0.0,
    d: int = 128,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    features: int = 64,
    active: int = 8,
    amplitude: tuple[float, float] = (0.5, 1.5),
    noise: float = 0.01,
    dense_rank: int = 10,
    padding: int = 64,
    base_holds: str = "reference",
) -> Planted:
    """A share of the deltas' features is in the reference, beside featureless padding.

    Args:
        share: of the features that the reference holds; 0, .25, .5, .75, .9 and 1 are tried.
        dense: share of the deltas' energy in a Gaussian part of rank `dense_rank` that no atom of the
            reference holds; 0, .4, .6, .8.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        features: of the deltas; 48–128.
        active: features on each row; 4–8, and 16 where the world is weak (k of the dictionaries stays 8).
        amplitude: of a firing, uniform.
        noise: white, per coordinate; .005–.05.
        padding: atoms of the reference that are no features of the deltas; 0–512.
        base_holds: base activations are made of the reference's atoms ("reference") or of all features
            besides ("all").
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    atoms, others = units(features, d, g), units(padding, d, g)
    held = np.zeros(features, dtype=bool)
    held[torch.randperm(features, generator=g)[: round(share * features)].numpy()] = True
    reference = torch.cat([atoms[torch.from_numpy(held)], others])
    deltas = line.codes(features, active, amplitude) @ atoms + noise * torch.randn(rows, d, generator=g)
    basis = None
    if dense:
        part, basis = dense_part(
            line, d, dense_rank, float(deltas.square().sum(1).mean()) * dense / (1 - dense)
        )
        deltas = deltas + part
    known = reference if base_holds == "reference" else torch.cat([reference, atoms[torch.from_numpy(~held)]])
    base = (
        10 * line.codes(len(known), 8, amplitude) @ known
        + 10 * noise * torch.randn(rows, d, generator=g)
        + 3.0
    )
    return _planted(
        line, fit, deltas, base, atoms=atoms, held=held, reference=reference, base_atoms=known, dense=basis
    )


def changed(
    seed: int,
    *,
    novel_rate: float = 0.0056,
    novel_energy: float = 0.05,
    tied: bool = True,
    d: int = 128,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    base_features: int = 128,
    features: int = 48,
    active: int = 8,
    amplitude: tuple[float, float] = (0.5, 1.5),
    noise: float = 0.01,
) -> Planted:
    """Deltas scale base features that the reference holds, and one novel feature is added on few rows.

    Args:
        novel_rate: share of the rows on which the novel feature fires; 0 (none), .0025, .0056, .018.
        novel_energy: its share of the deltas' energy; .04–.06.
        tied: the change fires where its base feature does, times .1; otherwise by itself.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        base_features: that base activations are made of; the reference holds all of them; 96–256.
        features: base features that the change scales; 32–96, a fifth of them downwards.
        active: base features on each row; 8–16.
        amplitude: of a firing, uniform; base activations are 10 times that.
        noise: white, per coordinate, of the deltas; .005–.05.
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    known = units(base_features, d, g)
    codes = line.codes(base_features, active, amplitude)
    base = 10 * codes @ known + 10 * noise * torch.randn(rows, d, generator=g) + 3.0
    chosen = torch.randperm(base_features, generator=g)[:features]
    sign = torch.where(torch.rand(features, generator=g) < 0.2, -1.0, 1.0)
    change = codes[:, chosen] if tied else line.codes(features, max(1, active // 2), amplitude)
    atoms = sign[:, None] * known[chosen]
    kinds: list[str | None] = (
        ["amplified" if s > 0 else "suppressed" for s in sign.tolist()] if tied else [None] * features
    )
    deltas = change @ atoms
    if novel_rate:
        fires, new = line.rare(novel_rate, amplitude), units(1, d, g)
        scale = (novel_energy / (1 - novel_energy) * deltas.square().sum() / fires.square().sum()).sqrt()
        deltas, atoms = deltas + scale * fires[:, None] * new, torch.cat([atoms, new])
        kinds.append("new")
    deltas = deltas + noise * torch.randn(rows, d, generator=g)
    held = np.arange(len(atoms)) < features
    return _planted(
        line, fit, deltas, base, atoms=atoms, held=held, reference=known, base_atoms=known, kinds=tuple(kinds)
    )


def absorbed(
    seed: int,
    *,
    pairs: int = 24,
    parents_held: bool = True,
    d: int = 128,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    active: int = 4,
    child_rate: float = 0.4,
    amplitude: tuple[float, float] = (0.5, 1.5),
    noise: float = 0.01,
    padding: int = 64,
) -> Planted:
    """Children fire only with their parents, and the reference has an atom of parent + child in the child's
    place.

    Args:
        pairs: parents, each with one child; 16–48.
        parents_held: the reference holds the parents too; otherwise only parent + child.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        active: parents on each row; 4–8.
        child_rate: of a parent's firings that its child joins; .2–.6.
        amplitude: of a firing, uniform; the child's is its parent's.
        noise: white, per coordinate; .005–.05.
        padding: atoms of the reference that are no features of the deltas; 0–256.
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    parents, children = units(pairs, d, g), units(pairs, d, g)
    codes = line.codes(pairs, active, amplitude)
    joined = codes * (torch.rand(codes.shape, generator=g) < child_rate)
    deltas = codes @ parents + joined @ children + noise * torch.randn(rows, d, generator=g)
    both = F.normalize(parents + children, dim=1)
    reference = torch.cat([*([parents] if parents_held else []), both, units(padding, d, g)])
    base = 10 * line.codes(len(reference), 8, amplitude) @ reference + 10 * noise * torch.randn(
        rows, d, generator=g
    )
    atoms = torch.cat([parents, children])
    held = np.arange(2 * pairs) >= 0
    return _planted(
        line, fit, deltas, base + 3.0, atoms=atoms, held=held, reference=reference, base_atoms=reference
    )


def featureless(
    seed: int,
    *,
    texts: int = 3,
    d: int = 128,
    rank: int = 24,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    base_features: int = 128,
) -> Planted:
    """Deltas of several corpora, each Gaussian with a covariance of its own: second moments and nothing else.

    Args:
        texts: corpora, which alternate by document; 1–4.
        d: width; 64–256.
        rank: directions that hold most of the energy of each corpus; 8–64.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        base_features: that base activations are made of, 8 on each row; the reference holds all of them;
            96–256.
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    corpora = line.doc_ids % texts
    mixing = [
        torch.randn(rank, d, generator=g) * torch.linspace(1.5, 0.3, rank)[:, None] for _ in range(texts)
    ]
    drawn = torch.randn(rows, rank, generator=g)
    deltas = torch.zeros(rows, d)
    for text in range(texts):
        here = torch.from_numpy(corpora == text)
        deltas[here] = drawn[here] @ mixing[text] / d**0.5
    deltas = deltas + 0.05 * torch.randn(rows, d, generator=g)
    known = units(base_features, d, g)
    base = (
        10 * line.codes(base_features, 8, (0.5, 1.5)) @ known + 0.1 * torch.randn(rows, d, generator=g) + 3.0
    )
    return _planted(
        line,
        fit,
        deltas,
        base,
        atoms=known[:0],
        held=np.zeros(0, bool),
        reference=known,
        base_atoms=known,
        corpora=corpora.astype(str),
    )


def scaled(
    seed: int,
    *,
    each: int = 12,
    turn: float = 90.0,
    d: int = 128,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    base_features: int = 128,
    active: int = 8,
    amplitude: tuple[float, float] = (0.5, 1.5),
    strength: float = 0.1,
    noise: float = 0.01,
) -> Planted:
    """Deltas of four kinds: base features amplified, suppressed and turned, and new ones that fire by
    themselves.

    Args:
        each: features of each kind; 8–16.
        turn: degrees by which a turned feature's direction moves; 60–90.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        base_features: that base activations are made of; the reference holds all of them; 96–256.
        active: base features on each row; 8–16. New features fire as often as base features.
        amplitude: of a firing, uniform; base activations are 10 times that.
        strength: of a change, as a share of the base feature it changes; .05–.3.
        noise: white, per coordinate, of the deltas; .005–.05.
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    known, new = units(base_features, d, g), units(2 * each, d, g)
    codes = line.codes(base_features, active, amplitude)
    base = 10 * codes @ known + 10 * noise * torch.randn(rows, d, generator=g) + 3.0
    up, down, turned = torch.randperm(base_features, generator=g)[: 3 * each].split(each)
    angle = torch.tensor(turn).deg2rad()
    sideways = F.normalize(
        new[:each] - (new[:each] * known[turned]).sum(1, keepdim=True) * known[turned], dim=1
    )
    moved = F.normalize(angle.cos() * known[turned] + angle.sin() * sideways - known[turned], dim=1)
    own = line.codes(base_features, active, amplitude)[:, :each]
    atoms = torch.cat([known[up], -known[down], moved, new[each:]])
    change = torch.cat([codes[:, up], codes[:, down], codes[:, turned], own], 1)
    deltas = 10 * strength * change @ atoms + noise * torch.randn(rows, d, generator=g)
    kinds = ("amplified",) * each + ("suppressed",) * each + ("turned",) * each + ("new",) * each
    held = np.repeat([True, True, False, False], each)
    return _planted(
        line, fit, deltas, base, atoms=atoms, held=held, reference=known, base_atoms=known, kinds=kinds
    )


def module(
    seed: int,
    *,
    rank: int = 4,
    share: float = 1.0,
    d: int = 128,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    base_features: int = 128,
    active: int = 8,
    amplitude: tuple[float, float] = (0.5, 1.5),
    leak: float = 0.1,
    noise: float = 0.001,
) -> Planted:
    """One adapted module: each of its few components reads one base feature and writes one direction.

    Args:
        rank: of the adapter; 1, 2, 4, 8, 16.
        share: of the written directions that the reference holds, rounded; 0, .5, 1.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        base_features: that base activations are made of; the reference holds all of them; 96–256.
        active: base features on each row; 8–16.
        amplitude: of a firing, uniform; base activations are 10 times that.
        leak: what each component reads of all other features, in standard deviations of what it should read;
            0–.3.
        noise: white, per coordinate, of the deltas; 0–.01.
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    known = units(base_features, d, g)
    codes = line.codes(base_features, active, amplitude)
    base = 10 * codes @ known + 10 * noise * torch.randn(rows, d, generator=g) + 3.0
    order = torch.randperm(base_features, generator=g)
    read, written = order[:rank], order[rank : 2 * rank]
    held = np.arange(rank) < round(share * rank)
    atoms = torch.where(torch.from_numpy(held)[:, None], known[written], units(rank, d, g))
    values = codes[:, read]
    others = (base - base.mean(0)) @ units(rank, d, g).T
    values = values + leak * values.std(0) * others / others.std(0)
    strength = 0.5 + 1.5 * torch.rand(rank, generator=g)
    deltas = (values * strength) @ atoms + noise * torch.randn(rows, d, generator=g)
    return _planted(line, fit, deltas, base, atoms=atoms, held=held, reference=known, base_atoms=known)


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
