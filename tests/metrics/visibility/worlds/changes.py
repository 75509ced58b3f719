"""Worlds of changes: what the deltas do to base features, and what is new."""

import numpy as np
import torch
import torch.nn.functional as F

from tests.metrics.visibility.worlds.rows import Planted, Rows, planted, units


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
    return planted(
        line, fit, deltas, base, atoms=atoms, held=held, reference=known, base_atoms=known, kinds=tuple(kinds)
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
    return planted(
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
    return planted(line, fit, deltas, base, atoms=atoms, held=held, reference=known, base_atoms=known)
