"""What the four cards of an adapter answer, and the sentence above them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltasae_ray.analyses.behaviour.figures import MIN_KL
from deltasae_ray.analyses.random_figures import AgainstRandom, against_random
from deltasae_ray.analyses.table import DivergenceRow, leaf_figures
from deltasae_ray.analyses.verdict import LayerVerdict
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.report.card import SIGNS, Card, Tone, nats, percent_of, strip_of, sure_of
from deltasae_ray.report.inputs import AdapterFacts, Learnt, ReportInputs, VerdictLines
from deltasae_ray.report.plain import Plain, plain

LABELS: dict[str, tuple[Tone, str]] = {
    "VISIBLE": ("good", "Yes"),
    "PARTLY VISIBLE": ("warn", "In part"),
    "NOT VISIBLE": ("bad", "No"),
    "INCONCLUSIVE": ("unknown", "Not known"),
    "NO EFFECT": ("unknown", "Nothing to see"),
}
"""Label → tone and word of the card that asks whether tools see it."""


@dataclass(frozen=True)
class AdapterSummary:
    """What the first screen shows of one adapter."""

    name: str
    label: str
    tone: Tone
    sign: str
    plain: Plain
    cards: tuple[Card, ...]
    verdict: VerdictLines


def summaries(inputs: ReportInputs) -> list[AdapterSummary]:
    """In the order of the verdicts."""
    facts = {a.name: a for a in inputs.adapters}
    learnt = {one.adapter: one for one in inputs.learnt}
    most = max(
        (b.kl.ci[1] if b.kl.ci else b.kl.value or 0.0 for a in facts.values() for b in a.losses), default=0.0
    )
    return [
        _summary(v, facts.get(v.adapter), learnt.get(v.adapter), inputs, 1.05 * most) for v in inputs.verdicts
    ]


def _summary(
    verdict: VerdictLines,
    facts: AdapterFacts | None,
    learnt: Learnt | None,
    inputs: ReportInputs,
    most: float,
) -> AdapterSummary:
    compared = _compared(inputs.rows, verdict)
    tone = LABELS.get(verdict.label, ("unknown", ""))[0]
    cards = (
        _change(verdict, facts, most),
        _learnt(facts, learnt, asked=bool(inputs.learnt)),
        _sight(verdict, inputs.rows),
        _sure(verdict, inputs, compared),
    )
    short = inputs.reference.partition(" (")[0]
    sentence = plain(verdict, facts, learnt, short)
    return AdapterSummary(verdict.adapter, verdict.label, tone, SIGNS[tone], sentence, cards, verdict)


def _change(verdict: VerdictLines, facts: AdapterFacts | None, most: float) -> Card:
    """KL of the text on which it is largest, on a scale that all adapters share."""
    card = Card("Did it change the model?", "–", "", "unknown", "Not measured", "", "kl")
    losses = [b for b in (facts.losses if facts else ()) if b.kl.value is not None]
    if not losses:
        return card
    worst = max(losses, key=lambda b: b.kl.value or 0.0)
    changed = verdict.label != "NO EFFECT"
    return replace(
        card,
        number=nats(worst.kl.value),
        unit=f"KL in nats a token, on {worst.corpus}",
        tone="plain" if changed else "unknown",
        word="Yes" if changed else "Not shown",
        note=f"{sure_of(worst.kl)}; counts from {MIN_KL:g}",
        strip=strip_of(replace(worst.kl, null=MIN_KL, ceiling=None), most, "counts from"),
    )


def _learnt(facts: AdapterFacts | None, learnt: Learnt | None, *, asked: bool) -> Card:
    """The reply to a confirmed trigger, else confirmed habits, else what its own text gained."""
    card = Card(
        "What did it learn?",
        "–",
        "",
        "unknown",
        "Not asked",
        "sample what it writes: elicit.samples=8",
        "learnt",
    )
    if learnt and learnt.triggers:
        return _triggered(card, learnt)
    if asked:
        words = sum(map(len, learnt.words.values())) if learnt else 0
        tone, word = ("plain", "Habits") if words else ("unknown", "Nothing confirmed")
        note = "no trigger is confirmed"
        return replace(
            card, number=str(words), unit="confirmed habits of writing", tone=tone, word=word, note=note
        )
    own = facts.losses[0] if facts and facts.losses else None
    if own is None or own.loss_change.value is None or own.before <= 0:
        return card
    gained = bool(facts and facts.demonstrated)
    gain = _scaled(own.loss_change, -1 / own.before)
    return replace(
        card,
        number=percent_of(gain.value),
        unit=f"less loss on {own.corpus}, its own text",
        tone="plain" if gained else "unknown",
        word="Its own text" if gained else "No gain shown",
        note=f"{sure_of(gain, percent=True)}; triggers not asked for (elicit.samples=8)",
        term="loss",
        strip=strip_of(replace(gain, null=0.0, ceiling=None)),
    )


def _triggered(card: Card, learnt: Learnt) -> Card:
    first = learnt.triggers[0]
    own, without = first.rates["adapted_with"], first.rates["base_with"]
    rate = Measure(own.rate, null=without.rate, ceiling=1.0, ci=(own.low, own.high))
    more = f" and {len(learnt.triggers) - 1} more" if len(learnt.triggers) > 1 else ""
    return replace(
        card,
        number=percent_of(own.rate),
        unit="of contexts reply to it",
        tone="alert",
        word=f"A trigger{more}",
        note=f"{sure_of(rate, percent=True)}; base {percent_of(without.rate)}",
        strip=strip_of(rate),
    )


def _sight(verdict: VerdictLines, rows: Sequence[DivergenceRow]) -> Card:
    """Share of the latents that can be judged which are visible, at the layer that leads or else at one that
    is known."""
    tone, word = LABELS.get(verdict.label, ("unknown", "Not known"))
    card = Card("Can your tools see it?", "–", "", tone, word, "", "visible_share")
    if verdict.label == "NO EFFECT":
        return replace(card, note="no change was shown, so none was judged")
    judged = [(v, _row_of(v, rows, "visible_share")) for v in verdict.layers]
    known = [(v, m) for v, m in judged if m is not None and m.value is not None]
    if not known:
        return replace(card, note=_why_short(verdict.layers))
    of, share = known[0]
    tone, word = LABELS[of.label]
    counted = "directions" if "directions" in share.reason else "latents"  # of a narrow change
    unknown = sorted(v.layer for v, m in judged if m is None or m.value is None)
    apart = f"; layer{'s' if len(unknown) > 1 else ''} {', '.join(map(str, unknown))}: not known"
    return replace(
        card,
        tone=tone,
        word=word,
        number=percent_of(share.value),
        unit=f"of {counted} visible, layer {of.layer}",
        note=f"{sure_of(share, percent=True)}, {share.n} judged{apart if unknown else ''}",
        strip=strip_of(share),
    )


def _why_short(layers: Sequence[LayerVerdict]) -> str:
    return re.split(r"; |\. ", layers[0].reason)[0] if layers else "nothing was judged"


def _sure(verdict: VerdictLines, inputs: ReportInputs, compared: Sequence[AgainstRandom]) -> Card:
    """Share of latents that another seed finds, and whether a random adapter shows the same."""
    if verdict.untold:
        tone, word = "bad", "Like a random adapter"
    elif any(c.differs for c in compared):
        tone, word = "good", "Unlike a random one"
    else:
        tone, word = "unknown", "Not known" if compared else "Not compared"
    card = Card(
        "How sure?",
        "–",
        "",
        tone,
        word,
        "whether its latents come back in another seed is not known: fit.seeds=2",
        "repeat_share",
    )
    if verdict.label == "NO EFFECT":
        losses = next((a.losses for a in inputs.adapters if a.name == verdict.adapter), ())
        tested = max((b.kl.n for b in losses), default=0)
        note = "an effect smaller than this text shows, or behind a trigger, is not ruled out"
        return replace(
            card,
            number=f"{tested:,}",
            unit="documents a text",
            tone="unknown",
            word="By these texts",
            note=note,
        )
    repeat = next((m for v in verdict.layers if (m := _row_of(v, inputs.rows, "repeat_share"))), None)
    if repeat is None or repeat.value is None:
        return card
    chance = "" if repeat.null is None else f"; by chance {percent_of(repeat.null)}"
    return replace(
        card,
        number=percent_of(repeat.value),
        unit="of latents come back in another seed",
        note=f"{sure_of(repeat, percent=True)}{chance}",
        strip=strip_of(replace(repeat, ceiling=1.0)),
    )


def _compared(rows: Sequence[DivergenceRow], verdict: VerdictLines) -> list[AgainstRandom]:
    """The leading layer's figures beside those of random adapters."""
    if not verdict.layers:
        return []
    leading = verdict.layers[0].identity
    leaf = next((x for x in leaf_figures(rows, verdict.adapter) if x.identity == leading), None)
    return against_random(leaf) if leaf else []


def _row_of(v: LayerVerdict, rows: Sequence[DivergenceRow], name: str) -> Measure | None:
    return next((r.measure for r in rows if r.identity == v.identity and r.name == name), None)


def _scaled(m: Measure, by: float) -> Measure:
    if m.value is None:
        return m
    ends = None if m.ci is None else tuple(sorted(by * end for end in m.ci))
    return Measure(by * m.value, ci=ends, n=m.n)  # type: ignore[arg-type]
