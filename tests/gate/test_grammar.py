"""Rules as text: what they mean, and that what is no rule is told with its place and what may have been
meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasae_ray.errors import ConfigError
from deltasae_ray.gate.grammar import comparisons, parse_condition
from deltasae_ray.gate.policy import Policy, parse_policy
from tests.fuzz import LONG, SHORT


def parsed(text: str) -> str:
    return str(parse_condition(text, "rule"))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("missing_share.ci_low > .5", "missing_share.ci_low > 0.5"),
        ("missing_share.value>=5e-1", "missing_share >= 0.5"),
        ("fvu_delta<-1 and density <= 3", "fvu_delta < -1 and density <= 3"),
        ("density > 1 or fvu_pca > 2 and fvu_delta > 3", "density > 1 or (fvu_pca > 2 and fvu_delta > 3)"),
        ("(density > 1 or fvu_pca > 2) and fvu_delta > 3", "(density > 1 or fvu_pca > 2) and fvu_delta > 3"),
        ("((angle_pca_k16.null > 3))", "angle_pca_k16.null > 3"),
        ("missing_share_no_top3_token_mean.p < 0.05", "missing_share_no_top3_token_mean.p < 0.05"),
    ],
)
def test_a_rule_means_what_it_says(text: str, meant: str) -> None:
    assert parsed(text) == meant and parsed(meant) == meant


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the name of a figure is expected where the rule ends"),
        ("missing_share", "one of >=, <=, >, < is expected"),
        ("missing_share >", "a number is expected where the rule ends"),
        ("missing_share > big", "a number is expected where 'big' stands at character 17"),
        ("missing_share > .5 density > 1", "`and`, `or` or the end"),
        ("(missing_share > .5", "`)` is expected"),
        ("missing_share == .5", "'== .5' at character 15 is not part of a rule"),
        ("__import__('os').system('x') > 1", "is not part of a rule"),
        ("missing_share > nan", "a number is expected"),
        ("missing_share > 1e400", "beyond any figure's range"),
        ("(" * 30 + "missing_share > 1", "parentheses"),
        ("missing_shre > .5", "did you mean missing_share"),
        ("missing_share.ci_lo > .5", "did you mean missing_share.ci_low"),
        ("missing_share_seeds > .5", "leave the ending _seeds"),
        ("density_no_top3 > .5", "there is no figure 'density_no_top3'"),
        ("cka_adapters > .5", "of two adapters"),
        ("missing_share > 1 and " * 100, "characters long"),
    ],
)
def test_what_is_no_rule_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(text)
    assert told in str(refused.value) and str(refused.value).startswith("rule")


GOOD = "rules:\n  - {name: a, when: 'missing_share > .5'}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "mapping"),
        ("rules: []", "at least one rule"),
        ("rulez: []", "did you mean rules?"),
        (GOOD + "undecided: pass", "must be stop (exit 3) or fail (exit 1)"),
        (GOOD + "nulls: random", "must be a list"),
        ("rules: [{name: a, when: 'density > 1'}, {name: a, when: 'density > 2'}]", "two rules"),
        ("rules: [{name: a}]", "when must be a text"),
        ("rules: [{name: a b, when: 'density > 1'}]", "letters, digits"),
        ("rules: [{name: a, when: 'density > 1', layers: [x]}]", "no number of a block"),
        ("rules: [{name: a, when: 'density > 1', layer: [1]}]", "did you mean layers?"),
        ("rules: [{name: a, when: 'density > 1', adapters: []}]", "adapters is empty"),
        ("rules: [1]", "must be a mapping"),
        ("a: !!python/object:os.system x", "tag"),
    ],
)
def test_what_is_no_policy_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_policy(text, "policy=x.yaml")
    assert told in str(refused.value) and "policy=x.yaml" in str(refused.value)


def test_a_rule_knows_its_line_in_the_file() -> None:
    policy = parse_policy(
        "# head\nrules:\n- name: first\n  when: density > 1\n- when: density > 2\n  name: 'b.1'\n", "p"
    )
    assert [(rule.name, rule.line) for rule in policy.rules] == [("first", 3), ("b.1", 6)]


WORDS = st.sampled_from(
    ["missing_share", "ci_low", ".", " ", "and", "or", "(", ")", ">", "<=", "0.5", "1e9", "-", "nan", "density",
     "monitor", "_seeds", "__class__", "'", "\n", ":", "- ", "rules", "name", "when", "{", "}", "[", "]", "&a ", "*a ",
     "nulls", "undecided", "stop", "!", "\u0661", "\x00", "ü", "#"]
)  # fmt: skip
RULES = st.lists(WORDS, max_size=30).map("".join) | st.text(max_size=200)
POLICIES = (
    RULES
    | RULES.map(lambda rule: f"rules:\n- name: a\n  when: {rule!r}\n")
    | st.binary(max_size=200).map(lambda data: data.decode(errors="replace"))
)


def ends_in_a_policy_or_a_typed_error(text: str) -> None:
    try:
        policy = parse_policy(text, "policy=x.yaml")
    except ConfigError:
        return
    assert isinstance(policy, Policy)
    for rule in policy.rules:
        again = parse_condition(str(rule.when), "again")
        assert list(comparisons(again)) == list(comparisons(rule.when))


@SHORT
@given(POLICIES)
def test_any_text_is_a_policy_or_a_typed_error(text: str) -> None:
    ends_in_a_policy_or_a_typed_error(text)


@pytest.mark.prove
@LONG
@given(POLICIES)
def test_ten_thousand_texts_are_policies_or_typed_errors(text: str) -> None:
    ends_in_a_policy_or_a_typed_error(text)
