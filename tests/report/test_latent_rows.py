"""The latents of the page: in which order, what stands beside each figure, which open, and what is left out."""

from dataclasses import replace

import pytest

from deltasae_ray.analyses.audit.table import AuditGroup, AuditRow
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.visibility.answer import LatentVisibility
from deltasae_ray.metrics.visibility.decision import LatentLabel
from deltasae_ray.report.inputs import JudgedLatents, ReportInputs
from deltasae_ray.report.latent_rows import CONTEXTS, FIGURES, by_concern, latent_rows
from tests.report.made import make


def row(latent: int | None, rank: int, cosine: float | None = 0.9, **changes: object) -> AuditRow:
    again = undefined("one training seed") if cosine is None else Measure(cosine, null=0.21)
    made = AuditRow(
        name="mean" if latent is None else str(latent), latent=latent, rank=rank, peak_rank=rank,
        energy_share=0.031, peak_energy=4.5,
        invisibility=Measure(0.62, null=0.55, p=0.04), percentile=0.96, percentile_haar=0.4, blind_spot=0.019,
        reproducibility=again,
        nearest=17, nearest_cosine=-0.41, lens_peak=Measure(6.1, null=4.2, p=0.02),
        ablated=Measure(0.0123, null=0.0007, ceiling=0.2, ci=(0.01, 0.015), p=0.03),
        added=undefined("not asked for (controls=causal)"),
        promoted=(" thou", "\n", "<b>"),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def group(*rows: AuditRow, layer: int = 9, notes: tuple[str, ...] = ()) -> AuditGroup:
    blind, again = Measure(0.4, null=0.5, ci=(0.3, 0.5), p=0.9), undefined("one training seed: not known")
    return AuditGroup("r4", layer, 256, 8, "topk", 0, "toy reference", 231, rows, blind, again, notes)


def judged(**labels: LatentLabel) -> JudgedLatents:
    """Labels by the latents' names, such as l7."""
    latents = tuple(
        LatentVisibility(int(name[1:]), label, 0.1, 0.2, "new", 55) for name, label in labels.items()
    )
    return JudgedLatents("r4", 9, 256, 8, "topk", 0, latents)


def test_every_figure_stands_beside_its_null() -> None:
    (one,), _ = latent_rows(make(audits=(group(row(3, 1)),), judged=(judged(l3="not visible"),)))
    assert one.invisible == [0.62, 0.55, 0.04]
    assert one.again == [0.9, 0.21]
    assert one.causal == [[0.0123, 0.01, 0.015, 0.0007, 0.03]], "the other side was not asked for"
    assert one.lens is not None and (one.lens.peak.value, one.lens.peak.null) == (6.1, 4.2)
    assert (one.label, one.q, one.scaling, one.firings) == ("not visible", 0.2, "new", 55)


def test_what_the_reference_cannot_see_leads_whatever_its_energy() -> None:
    rows = (row(None, 0, None), row(1, 1), row(2, 2), row(3, 3), row(4, 4))
    labels = judged(l2="visible", l3="cannot be judged", l4="not visible")
    found, _ = latent_rows(make(audits=(group(*rows),), judged=(labels,)))
    assert [(one.name, one.label) for one in found] == [
        ("latent 4", "not visible"),
        ("the mean change", "no latent"),
        ("latent 3", "cannot be judged"),
        ("latent 1", "not judged"),
        ("latent 2", "visible"),
    ]
    assert by_concern(rows, {2: "visible", 3: "cannot be judged", 4: "not visible"}) == [4, 3, 1, 2]


def test_what_was_not_measured_is_left_out_and_not_zero() -> None:
    (one,), _ = latent_rows(make(audits=(group(row(3, 1, None, promoted=(), nearest=None)),), judged=()))
    assert (one.again, one.lens, one.nearest, one.label) == ([None, None], None, None, "not judged")


@pytest.mark.parametrize("more", [0, 7])
def test_the_page_holds_so_many_figures_and_texts_and_says_what_it_leaves_out(more: int) -> None:
    rows = tuple(row(i, i) for i in range(1, FIGURES + more + 1))
    (cards, *_) = make().latents
    card = cards.cards[0]
    opened = tuple(replace(card, latent=i) for i in range(1, CONTEXTS + 51))
    one = replace(cards, adapter="r4", layer=9, d_sae=256, cards=opened)
    found, (held,) = latent_rows(make(audits=(group(*rows),), judged=(), latents=(one,)))
    assert len(found) == FIGURES
    assert [one.latent for one in found if one.card] == list(range(1, CONTEXTS + 1))
    assert (held.figures, held.opened, held.alive) == (FIGURES, CONTEXTS, 231)


def test_the_page_can_be_drawn_again_from_its_values() -> None:
    inputs = make(audits=(group(row(3, 1)),))
    assert ReportInputs.from_json(inputs.to_json()) == inputs
