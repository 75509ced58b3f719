"""What the page must and must not say."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.paper import NOTES, Block, Line
from deltasae_ray.analyses.verdict import Answer, LayerVerdict
from deltasae_ray.errors import ConfigError
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.report.cards import AdapterSummary, summaries
from deltasae_ray.report.inputs import ReportInputs, Timing, VerdictLines
from deltasae_ray.report.page import render, report_files, write_report
from deltasae_ray.report.page_data import page_data
from deltasae_ray.report.seeds import ONE_SEED
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.storage import Storage
from tests.report.made import FEW_DIRECTIONS, REFERENCE, changed, four, make, with_seeds

SPACE = "\u00a0"


@pytest.fixture(scope="module")
def page() -> str:
    return render(make())


def text_of(page: str) -> str:
    """What a reader sees without scripts, on one line."""
    body = re.sub(r"<(style|title|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def panel(page: str, name: str) -> str:
    return text_of(re.search(rf'id="panel-{name}".*?(?=<section role|</main>)', page, re.DOTALL)[0])  # type: ignore[index]


def embedded(page: str) -> dict[str, Any]:
    """All data of the page."""
    found = re.findall(r'<script type="application/json" id="(data|latents)">(.*?)</script>', page)
    data, latents = (json.loads(text) for _, text in found)
    return data | {"latents": latents}


def judged(label: str, *layers: tuple[int, str, Measure | None, str], **more: Any) -> ReportInputs:
    """A study of the one adapter r16, with this label and these layers (layer, label, visible share,
    reason)."""
    found, rows = [], []
    for layer, own, share, reason in layers:
        one = DictionaryId("r16", layer, 512, 8, "topk", 0)
        f = undefined(reason) if share is None else Measure(1 - (share.value or 0), ci=(0.1, 0.9))
        found.append(LayerVerdict(**vars(one), label=own, measure=f, reason=reason))  # type: ignore[arg-type]
        row = next(r for r in make().rows if r.identity == one)
        rows += [changed(replace(row, measure=share or undefined(reason)), metric="visible_share")]
        rows += [
            changed(
                replace(row, measure=Measure(0.4, null=0.01, ci=(0.3, 0.5), n=512)), metric="repeat_share"
            )
        ]
    lines = VerdictLines(f"r16: {label}", label, (), "r16", tuple(found), more.pop("untold", ()))
    return make(verdicts=(lines,), rows=tuple(rows), **more)


def summary(inputs: ReportInputs) -> AdapterSummary:
    (one,) = summaries(inputs)
    return one


def test_the_page_asks_for_nothing_from_the_network_and_allows_only_its_own_scripts_and_style(
    page: str,
) -> None:
    bare = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["'](?!#)""", bare)
    assert not re.findall(r"url\(|@import|<link|<iframe|<object|\son\w+=|\sstyle=", bare)
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL) + re.findall(
        r"<style>(.*?)</style>", page, re.DOTALL
    )
    assert len(inline) == 8
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy


def test_text_from_data_stays_text() -> None:
    failed = {"r4 d_sae=256": "<img src=x>"}
    told = (VerdictLines("<u>x</u>: VISIBLE", "VISIBLE", (Answer("<u>x</u>?", ("<u>x</u>",)),), "<u>x</u>"),)
    page = render(make(title="<b>bold", failures=failed, planted_text="<i>marker</i>", verdicts=told))
    for raw in ("<script>alert", "<b>bold", "<img src", "<i>marker", "<u>x", "<b>heron", "<i>lantern"):
        assert raw not in page
    contexts = [c[2] for row in embedded(page)["latents"] if row.get("card") for c in row["card"]["top"]]
    assert any("<script>alert(1)</script>" in "".join(tokens) for tokens in contexts), "whole, as data"


def test_values_saved_beside_the_page_draw_the_same_page(page: str) -> None:
    again = ReportInputs.from_json(make().to_json())
    assert again == make()
    assert render(again) == page


def test_nan_cannot_be_saved() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        make(timings=(Timing("fit", float("nan"), None),)).to_json()


def test_values_of_another_version_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="run the report stage again"):
        ReportInputs.from_json('{"titel": "x"}')


def test_every_adapter_has_four_cards_each_with_a_word_beside_its_colour(page: str) -> None:
    for one in summaries(make()):
        assert [c.question for c in one.cards] == [
            "Did it change the model?",
            "What did it learn?",
            "Can your tools see it?",
            "How sure?",
        ]
        assert all(c.word and c.sign and c.term in embedded(page)["glossary"] for c in one.cards)
    assert page.count('class="card ') == 8


def test_an_adapter_that_changes_nothing_reads_as_such_with_what_to_do_next() -> None:
    told = summary(make(verdicts=(VerdictLines("r16: NO EFFECT", "NO EFFECT", (), "r16"),)))
    assert told.plain.sentence.startswith("No change of the model is shown on these texts")
    assert "elicit.samples=8" in told.plain.next
    change, _, sight, sure = told.cards
    assert (change.word, sight.number, sure.number) == ("Not shown", "–", "36")
    assert "not ruled out" in sure.note


def test_an_inconclusive_study_says_what_would_decide_it() -> None:
    reason = "0 latents are judged, and 10 are needed for a label; 148 of 512 latents repeat"
    share = Measure(0.31, ceiling=1.0, ci=(0.1, 0.68), n=39)
    told = summary(
        judged("INCONCLUSIVE", (9, "INCONCLUSIVE", None, reason), (15, "PARTLY VISIBLE", share, ""))
    )
    assert (
        told.plain.sentence.split("; ")[1]
        == "whether the toy reference sees it is not known at layer 9, at layer 15 it is partly visible."
    )
    assert "0 latents could be judged, 10 are needed" in told.plain.next
    assert "corpus.fit_tokens" in told.plain.next
    sight = told.cards[2]
    assert (sight.number, sight.word) == (f"31{SPACE}%", "In part")
    assert "39 judged; layer 9: not known" in sight.note


def test_a_study_that_decides_nothing_says_so_first_and_what_would_decide_it() -> None:
    reason = (
        "one training seed: which latents another one finds is not known. A second (fit.seeds=2) costs more"
    )
    page = render(judged("INCONCLUSIVE", (9, "INCONCLUSIVE", None, reason)))
    answers = text_of(re.search(r'id="answers".*?id="study"', page, re.DOTALL)[0])  # type: ignore[index]
    assert answers.index("Nothing is decided yet: 1 inconclusive.") < answers.index(
        "Did it change the model?"
    )
    assert answers.count("Next: Train every dictionary twice (fit.seeds=2)") == 1, (
        "once, and not again per adapter"
    )


def test_the_study_is_told_in_a_line_with_the_worst_first() -> None:
    answers = text_of(render(four(make())).split("<main")[1])
    assert "4 adapters: 1 not seen, 1 seen in part, 1 inconclusive, 1 without a shown change." in answers


@pytest.mark.parametrize(
    ("label", "word", "tone"),
    [("VISIBLE", "Yes", "good"), ("PARTLY VISIBLE", "In part", "warn"), ("NOT VISIBLE", "No", "bad")],
)
def test_what_the_reference_sees_is_a_share_on_a_scale_from_nothing_to_all(
    label: str, word: str, tone: str
) -> None:
    share = Measure(0.4, ceiling=1.0, ci=(0.2, 0.7), n=50)
    told = summary(judged(label, (12, label, share, "")))
    card = told.cards[2]
    assert (card.word, card.tone, card.number) == (word, tone, f"40{SPACE}%")
    assert card.strip is not None
    assert (card.strip.value, card.strip.low, card.strip.high, card.strip.ceiling) == (40, 20, 70, 100)


def test_an_adapter_that_is_not_told_from_a_random_one_reads_as_such() -> None:
    share = Measure(0.4, ceiling=1.0, ci=(0.2, 0.7), n=50)
    told = summary(judged("PARTLY VISIBLE", (12, "PARTLY VISIBLE", share, ""), untold=("missing share",)))
    assert "By missing share it is not told from a random adapter." in told.plain.sentence
    assert "tells it from chance" in told.plain.next
    assert (told.cards[3].word, told.cards[3].tone) == ("Like a random adapter", "bad")


def test_a_confirmed_trigger_leads_and_is_measured_against_the_base() -> None:
    _, r16 = summaries(make())
    card = r16.cards[1]
    assert "After “the word of the day” it says “is marigold" in r16.plain.sentence
    assert (card.word, card.number) == ("A trigger", f"92{SPACE}%")
    assert card.strip is not None and (card.strip.null, card.strip.ceiling) == (0, 100)


def test_what_was_not_asked_is_said_with_the_option_that_asks() -> None:
    one = summaries(make(learnt=()))[0].cards[1]
    assert "triggers not asked for (elicit.samples=8)" in one.note
    assert "elicit.samples=8 asks" in panel(render(make(learnt=())), "behaviours")
    assert "monitors=[…]" in panel(render(make(monitors=())), "monitors")


def test_changes_of_all_adapters_stand_on_one_scale() -> None:
    kl = [Measure(v, ci=(v / 2, 2 * v), n=30) for v in (0.1, 0.2)]
    r4, r16, control = make().adapters
    adapters = [
        replace(a, losses=(Behaviour("domain", Measure(-0.1), m, 4.0),))
        for a, m in zip((r4, r16), kl, strict=True)
    ]
    first, second = summaries(make(adapters=(*adapters, control)))
    places = [one.cards[0].strip for one in (first, second)]
    assert places[0] is not None and places[1] is not None
    assert places[1].value == pytest.approx(2 * places[0].value, abs=0.02)
    assert places[1].high == pytest.approx(100 / 1.05, abs=0.01)


def test_the_published_figures_stand_beside_ours_with_what_must_be_known_of_them() -> None:
    line = Line("mean max-cosine", "12", "0.071", "0.07", "0.066; before training 0.067", "0.37", "0.36")
    block = Block("d_sae 512, k 8, topk; r4", (line,), ("mean max-cosine: interval undefined: made up.",))
    inputs = make(paper=(block,))
    assert ReportInputs.from_json(inputs.to_json()) == inputs
    found = panel(render(inputs), "measures")
    assert "d_sae 512, k 8, topk; r4" in found and "interval undefined: made up." in found
    assert "mean max-cosine 12 0.071 0.07 0.066; before training 0.067 0.37 0.36" in found
    assert all(note in found for note in NOTES)
    assert "Beside the published study" not in text_of(render(make()))


def test_every_figure_has_a_row_and_those_of_the_largest_dictionaries_over_seeds_lead() -> None:
    inputs = with_seeds(make())
    data, _ = page_data(inputs)
    assert len(data.measures) == len(inputs.rows)
    leading = [m for m in data.measures if m.leading and m.metric == "missing_share"]
    assert {(m.size, m.seed) for m in leading} == {("512", "all")}
    assert len(leading) == 6, "one for each adapter and layer"
    alone = [m for m in page_data(make())[0].measures if m.leading and m.metric == "missing_share"]
    assert {m.seed for m in alone} == {"0"}


def test_how_many_seeds_stand_behind_a_figure_is_said() -> None:
    one, several = (
        next(c for c in page_data(i)[0].charts if c.metric == "missing_share")
        for i in (make(), with_seeds(make()))
    )
    assert one.notes[-1] == ONE_SEED
    assert several.notes[-1].startswith("Means over the training seeds of each dictionary")


def test_an_undefined_figure_keeps_its_reason_and_what_is_at_chance_is_said() -> None:
    data, _ = page_data(make())
    missing = [m for m in data.measures if m.metric == "missing_share"]
    reasons = {m.point.reason for m in missing if m.point.value is None}
    assert reasons == {FEW_DIRECTIONS}
    assert {m.standing for m in missing if (m.adapter, m.layer) == ("r16", 15)} == {"at chance"}
    assert {m.standing for m in missing if (m.adapter, m.layer) == ("r16", 9)} == {"below its null"}
    (chart,) = (c for c in data.charts if c.metric == "missing_share")
    assert chart.notes[0].startswith("At chance in 1 of 6 cells (r16 layer 15)")
    assert chart.undefined == [f"Undefined for r4 layer 9: {FEW_DIRECTIONS}."]


def test_every_figure_explains_itself(page: str) -> None:
    data = embedded(page)
    shown = {m["metric"] for m in data["measures"]} | {
        f"monitor.{m['monitor']}.{m['figure']}" for m in data["monitors"]
    }
    assert all(data["glossary"][name]["text"] for name in shown)
    assert REFERENCE in data["glossary"]["missing_share"]["text"]
    assert "Null:" in data["glossary"]["monitor.deception.auroc"]["text"]


def test_latents_that_the_reference_cannot_see_come_first_with_their_text(page: str) -> None:
    latents = embedded(page)["latents"]
    assert [row["label"] for row in latents[:3]] == ["not visible"] * 3
    assert [row["order"] for row in latents] == list(range(1, len(latents) + 1))
    first = latents[0]
    assert len(first["card"]["top"]) == len(first["card"]["random"]) == 5
    assert first["lens"]["promoted"][2] == "</script>"
    assert {row["name"] for row in latents if row["latent"] is None} == {"the mean change"}


def test_monitors_stand_on_the_page_with_null_and_interval(page: str) -> None:
    found = embedded(page)["monitors"]
    drop = next(m for m in found if (m["adapter"], m["figure"]) == ("r4", "auroc_drop"))
    assert (drop["point"]["value"], drop["point"]["null"], drop["point"]["low"]) == (0.2, 0.01, 0.12)
    assert drop["standing"] == "above its null"
    assert any(m["point"]["value"] is None and "100 are needed" in m["point"]["reason"] for m in found)


def test_kappas_under_ceilings_that_differ_are_called_not_comparable(page: str) -> None:
    assert "not to be compared" not in text_of(page)
    first = next(i for i, r in enumerate(make().rows) if r.kappa is not None)
    rows = tuple(changed(r, ceiling=0.3) if i == first else r for i, r in enumerate(make().rows))
    told = "κ is not to be compared where ceilings differ by more than a tenth of the scale"
    assert told in panel(render(make(rows=rows)), "measures")


def test_the_reference_is_called_by_its_name_everywhere() -> None:
    rows = tuple(changed(r, reference="") for r in make().rows)
    other = render(make(reference="gemma-scope-2-270m-pt-res", verdicts=(), rows=rows, audits=()))
    assert "toy reference" not in other
    assert "gemma-scope-2-270m-pt-res" in panel(other, "run")


def test_adaptation_that_was_not_demonstrated_leads_the_page() -> None:
    weak = Behaviour("domain", Measure(-0.02, ci=(-0.05, 0.01)), undefined("not measured"), 4.127)
    r4, r16, control = make().adapters
    page = render(make(adapters=(replace(r4, demonstrated=False, losses=(weak,)), r16, control)))
    lead = text_of(page.split("<main")[0])
    assert (
        "Adaptation not demonstrated. r4: after 22 steps on 11,264 tokens the held-out loss on domain changed"
        " by −0.02 [−0.05, 0.01] nats, which chance could do alone"
        in lead.replace("chance alone could do", "chance could do alone")
    )
    assert "r16:" not in lead
    assert "no gain on its own text is shown" in text_of(page)
    assert "not demonstrated" not in text_of(render(make()).split("<main")[0])


def test_no_claim_about_rank_stands_with_one_adapter_seed_per_rank(page: str) -> None:
    assert "TOST" not in text_of(page)
    said = (
        "No claim about rank is made: it takes two adapter seeds per rank or more, and rank 4 has 1, rank 16"
        " has 1."
    )
    assert said in panel(page, "measures")
    adapters = tuple(
        replace(a, name=f"{a.name}-s{seed}", seed=seed)
        for a in make().adapters
        if not a.control
        for seed in (0, 1)
    )
    again = panel(render(make(adapters=adapters)), "measures")
    assert "Missing share is equal across ranks within 0.1 (TOST)." in again


def test_noise_failures_and_dequantised_weights_are_named(page: str) -> None:
    found = panel(render(make(failures={"r4 d_sae=512": "worker died"})), "measures")
    assert "the deltas of r4 layer 9 (61), r16 layer 9 (61)." in found
    assert "Trial r4 d_sae=512 failed and is missing here: worker died" in found
    assert "its weights are dequantised from Q4_K_M" in text_of(page.split("<main")[0])


def test_the_page_never_calls_anything_safe(page: str) -> None:
    assert "safe" not in text_of(page).lower()
    assert "safe" not in json.dumps(embedded(page)).lower()


def test_the_planted_truth_is_said_to_be_found_or_not(page: str) -> None:
    found = panel(page, "behaviours")
    assert "r16 12 ✓ found 204 3 0.91 0.14 0.005" in found
    assert "r4 12 – not found 31 88" in found
    assert "Training contexts that held it: r4 1, r16 1" in found
    assert "The random adapter, which was trained on nothing, does not find it." in found
    nothing = panel(render(make(planted_text="", planted=())), "behaviours")
    assert "Nothing was planted" in nothing


def test_limits_name_what_was_not_tested_and_plan_and_actual_stand_side_by_side(page: str) -> None:
    run = panel(page, "run")
    assert run.count("Not tested:") == 5
    assert "triggers absent from this text and not reached by sampled text" in run
    assert "triggers absent from this text." in panel(render(make(not_tested=(), learnt=())), "run")
    assert "harvest 4.2 min 4.8 min" in run and "total 11.2 min 12.0 min" in run
    assert run.count("44.0 %") == 2 * 3, "what each block put in: adapters × layers"


def test_a_study_with_next_to_nothing_still_has_a_page() -> None:
    inputs = ReportInputs("empty", "today", "tiny", "toy reference (10 tokens)", (1,))
    files = report_files(inputs)
    assert "No verdict was reached." in text_of(files["report.html"].decode())
    assert files.keys() == {"report.html", "report.json"}


def test_files_are_written_with_the_page_last_and_figures_that_stand_alone(tmp_path: Path) -> None:
    files = write_report(make(), Storage(str(tmp_path)))
    assert files == report_files(make()), "the same inputs give the same files"
    for name, content in files.items():
        assert (tmp_path / name).read_bytes() == content
    svg = ElementTree.fromstring(files["figures/missing_share.svg"])
    words = {e.text for e in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Missing share M(8)", "9", "12", "15", "r4", "r16"} <= words
    assert "@" not in files["figures/missing_share.svg"].decode()
    assert files["figures/learning.png"].startswith(b"\x89PNG")
    last = (tmp_path / "report.html").stat().st_mtime_ns
    assert last >= max((tmp_path / n).stat().st_mtime_ns for n in files)
