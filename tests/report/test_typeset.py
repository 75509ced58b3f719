"""Verdicts and windows of tokens, as the page sets them."""

from deltasae_ray.analyses.verdict import Answer
from deltasae_ray.report.inputs import VerdictLines
from deltasae_ray.report.typeset import prose, verdict

FOUND = VerdictLines(
    "r16, layer 12: NOT VISIBLE",
    "NOT VISIBLE",
    (
        Answer("Did it change the model?", ("domain loss -0.41 [-0.50, -0.33]",)),
        Answer("Can the toy reference (9 tokens) see it?", ("With 8 atoms it explains 46 %", "r4 does not")),
        Answer("Not tested:", ("triggers absent from this text",)),
    ),
)


def test_answers_are_set_as_sentences_under_their_questions():
    found = verdict(FOUND)
    assert (found.css, found.head) == ("not-visible", "r16, layer 12: NOT VISIBLE")
    assert dict(found.answers) == {
        "Did it change the model?": "Domain loss −0.41 [−0.50, −0.33].",
        "Can the toy reference (9 tokens) see it?": "With 8 atoms it explains 46\u00a0%. r4 does not.",
        "Not tested": "Triggers absent from this text.",
    }


def test_prose_escapes_and_keeps_emphasis_minus_and_percent():
    assert (
        prose("**a** *b* <c> -0.5 r4-s0 2024-11-02 12 %")
        == "<strong>a</strong> <em>b</em> &lt;c&gt; −0.5 r4-s0 2024-11-02 12\u00a0%"
    )
