"""The latents of the page as its scripts read them: figures of the first ones, contexts of fewer, and what is
left out."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from deltasae_ray.analyses.audit.figures import AuditedLatent
from deltasae_ray.analyses.audit.table import AuditGroup, AuditRow
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.report.contexts import Context
from deltasae_ray.report.inputs import JudgedLatents, ReportInputs
from deltasae_ray.report.latents import LatentCard

FIGURES = 2000
"""Latents of an adapter and layer whose figures the page holds."""
CONTEXTS = 100
"""Latents of an adapter and layer that the page shows with their contexts."""
MEAN, NOT_JUDGED = "no latent", "not judged"
CONCERN = ("not visible", "partly", MEAN, "cannot be judged", NOT_JUDGED, "visible")
"""Labels, the most worrying first."""


class Window(msgspec.Struct, array_like=True):
    """One context."""

    place: str
    """Text and document, such as "domain · hamlet-006, token 12"."""
    center: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    marker: tuple[int, ...]
    """Indices of tokens of the planted marker."""


class Card(msgspec.Struct):
    """What opens with a latent."""

    density: float
    firing: int
    peak: float
    top: list[Window]
    random: list[Window]


class Lens(msgspec.Struct):
    """What the logit lens reads in a direction."""

    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    peak: Measure


class SteeredTexts(msgspec.Struct):
    """What the base model writes with a direction added, at each strength."""

    own: tuple[str, ...]
    random: tuple[tuple[str, ...], ...]
    """With random directions of the same length."""


class LatentRow(msgspec.Struct, omit_defaults=True):
    """One direction of the table."""

    adapter: str
    layer: int
    latent: int | None
    """None for a direction that is no latent."""
    name: str
    order: int
    """Place by concern among all, from 1."""
    label: str
    """Whether the reference can see it; one of CONCERN."""
    q: float | None = None
    scaling: str | None = None
    firings: int | None = None
    energy: float | None = None
    invisible: list[float | None] = []
    """[value, null, p]."""
    blind_spot: float | None = None
    again: list[float | None] = []
    """[value, null]."""
    nearest: int | None = None
    cosine: float | None = None
    lens: Lens | None = None
    causal: list[list[float | None]] = []
    """Taken out of the adapted model, and put into the base: [value, low, high, null, p] each, in nats a
    token."""
    steered: SteeredTexts | None = None
    card: Card | None = None


class OnPage(msgspec.Struct):
    """What of one dictionary the page holds."""

    dictionary: str
    """Its adapter, layer and size."""
    alive: int
    figures: int
    opened: int
    notes: tuple[str, ...]


def by_concern(rows: Sequence[AuditedLatent], labels: Mapping[int, str]) -> list[int]:
    """Latents that are not visible first, then by the audit's rank."""
    latents = [(row.rank or 0, row.latent) for row in rows if row.latent is not None]

    def place(latent: tuple[int, int]) -> tuple[int, int]:
        return CONCERN.index(labels.get(latent[1], NOT_JUDGED)), latent[0]

    return [latent for _, latent in sorted(latents, key=place)]


def latent_rows(inputs: ReportInputs) -> tuple[list[LatentRow], list[OnPage]]:
    """Rows of every dictionary that was audited, by concern; and what of each the page holds."""
    judged = {one.identity: one for one in inputs.judged}
    cards = {group.identity: {c.latent: c for c in group.cards} for group in inputs.latents}
    rows: list[LatentRow] = []
    shown = []
    for group in inputs.audits:
        rows_of_group = _rows(group, judged.get(group.identity), cards.get(group.identity, {}))
        rows += rows_of_group
        opened = sum(row.card is not None for row in rows_of_group)
        latents = sum(row.latent is not None for row in rows_of_group)
        name = f"{group.adapter}, layer {group.layer} (d_sae {group.d_sae:,})"
        shown.append(OnPage(name, group.alive, latents, opened, group.notes))
    rows.sort(key=lambda row: (CONCERN.index(row.label), row.order))
    for place, row in enumerate(rows, start=1):
        row.order = place
    return rows, shown


def _rows(
    group: AuditGroup, judged: JudgedLatents | None, cards: Mapping[int, LatentCard]
) -> list[LatentRow]:
    labels = {x.index: x for x in judged.latents} if judged else {}
    order = by_concern(group.rows, {index: x.label for index, x in labels.items()})[:FIGURES]
    by_latent = {row.latent: row for row in group.rows if row.latent is not None}
    leading = [_row(group, row, 0, None, None) for row in group.rows if row.latent is None]
    opened = set(order[:CONTEXTS])
    return leading + [
        _row(group, by_latent[i], at, labels.get(i), cards.get(i) if i in opened else None)
        for at, i in enumerate(order, start=1)
    ]


def _row(group: AuditGroup, row: AuditRow, order: int, judged: Any, card: LatentCard | None) -> LatentRow:
    return LatentRow(
        adapter=group.adapter,
        layer=group.layer,
        latent=row.latent,
        name=row.called,
        order=order,
        label=judged.label if judged else MEAN if row.latent is None else NOT_JUDGED,
        q=_short(judged.q) if judged else None,
        scaling=judged.scaling if judged else None,
        firings=judged.firings if judged else None,
        energy=_short(row.energy_share),
        invisible=[_short(x) for x in (row.invisibility.value, row.invisibility.null, row.invisibility.p)],
        blind_spot=_short(row.blind_spot),
        again=[_short(x) for x in (row.reproducibility.value, row.reproducibility.null)],
        nearest=row.nearest,
        cosine=_short(row.nearest_cosine),
        lens=Lens(row.promoted[:5], row.suppressed[:5], row.lens_peak) if row.promoted else None,
        causal=[_effect(m) for m in (row.ablated, row.added) if m.value is not None],
        steered=SteeredTexts(row.steered, group.random_steered) if row.steered else None,
        card=None if card is None else _card(card),
    )


def _effect(m: Measure) -> list[float | None]:
    low, high = m.ci or (None, None)
    return [_short(x) for x in (m.value, low, high, m.null, m.p)]


def _card(card: LatentCard) -> Card:
    return Card(
        density=_short(card.density) or 0.0,
        firing=card.firing_tokens,
        peak=_short(card.peak) or 0.0,
        top=[_window(c) for c in card.top],
        random=[_window(c) for c in card.random],
    )


def _window(c: Context) -> Window:
    return Window(
        place=f"{c.corpus} · {c.doc_id}, token {c.position}",
        center=c.center,
        tokens=c.tokens,
        activations=tuple(_short(a, 3) or 0 for a in c.activations),
        marker=tuple(i for i, on in enumerate(c.marker) if on),
    )


def _short(value: float | None, digits: int = 4) -> float | None:
    """The value with so many significant digits; whole numbers without a point."""
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short
