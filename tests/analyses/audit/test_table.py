"""The audit on the page: which rows, what stands beside each figure, and what is greyed."""

import re
from dataclasses import replace

import pytest

from deltasae_ray.analyses.audit.table import AuditGroup, AuditRow
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.page import render
from tests.report.made import make
from tests.report.test_page import section, text_of


def row(latent: int | None, rank: int, cosine: float | None, **changes: object) -> AuditRow:
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


def group(*rows: AuditRow, notes: tuple[str, ...] = ()) -> AuditGroup:
    blind, again = Measure(0.4, null=0.5, ci=(0.3, 0.5), p=0.9), undefined("one training seed: not known")
    return AuditGroup("r4", 9, 256, 8, "topk", 0, "toy reference", 231, rows, blind, again, notes)


@pytest.fixture(scope="module")
def audit() -> str:
    """The section, as HTML."""
    shown = make().latents[0].cards[0].latent
    rows = (row(None, 0, None), row(shown, 1, 0.93), row(9_999, 2, 0.44))
    page = render(make(audits=(group(*rows, notes=("The activation difference lens is undefined.",)),)))
    return page[page.index('<section id="audit">') : page.index('<section id="latents">')]


def test_every_figure_stands_beside_its_null(audit: str) -> None:
    text = text_of(audit)
    for said in (
        "0.62 (0.55, p 0.04)",
        "0.93 (0.21)",
        "6.10 (4.20, p 0.02)",
        "12.3 [10.0, 15.0] (0.70, p 0.03)",
        "17 cos −0.41",
        "1 of the 2 shown repeat",
    ):
        assert said in text, said
    assert (
        "undefined (one training seed: not known)" in text
        and "The activation difference lens is undefined." in text
    )


def test_only_what_does_not_repeat_is_greyed(audit: str) -> None:
    greyed = re.findall(r'<tr class="alone">(.*?)</tr>', audit, re.DOTALL)
    assert len(greyed) == 1 and "latent 9999" in greyed[0]


def test_a_latent_leads_to_its_contexts_where_they_are_shown() -> None:
    inputs = make()
    card = inputs.latents[0]
    page = render(
        make(
            audits=(
                replace(
                    group(row(card.cards[0].latent, 1, 0.9), row(9_999, 2, 0.9)),
                    adapter=card.adapter,
                    layer=card.layer,
                ),
            )
        )
    )
    target = f"latent-{card.adapter}-{card.layer}-{card.cards[0].latent}"
    assert f'href="#{target}"' in page and f'id="{target}"' in page and "latent-r4-9-9999" not in page


def test_tokens_are_text_and_never_markup(audit: str) -> None:
    assert "<code>thou</code>" in audit and "<code>↵</code>" in audit and "<code>&lt;b&gt;</code>" in audit


def test_the_page_can_be_drawn_again_from_its_values() -> None:
    inputs = make(audits=(group(row(3, 1, 0.9)),))
    assert ReportInputs.from_json(inputs.to_json()) == inputs


def test_a_study_without_audit_says_so() -> None:
    assert "Nothing was audited" in section(render(make()), "audit")
