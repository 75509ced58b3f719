"""The worked examples of CONTRIBUTING.md run against the package, and state what they show."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


NAMES = ("metric", "control", "analysis", "dictionary architecture")


def test_each_kind_of_addition_has_an_example_that_asserts() -> None:
    headings = re.findall(r"^## A new (.+)$", PAGE.read_text(), flags=re.M)
    assert headings == ["option", *NAMES] and len(EXAMPLES) == len(NAMES)
    assert all("\nassert " in text for text in EXAMPLES)


@pytest.mark.parametrize("text", EXAMPLES, ids=NAMES)
def test_a_worked_example_runs(text: str) -> None:
    exec(compile(text, str(PAGE), "exec"), {"__name__": "example"})
