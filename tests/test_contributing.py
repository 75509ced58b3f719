"""The worked examples of CONTRIBUTING.md run against the package, and state what they show."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


def test_metric_and_control_have_an_example_that_asserts() -> None:
    assert len(EXAMPLES) == 2 and all("assert" in text for text in EXAMPLES)


@pytest.mark.parametrize("text", EXAMPLES, ids=["metric", "control"])
def test_a_worked_example_runs(text: str) -> None:
    exec(compile(text, str(PAGE), "exec"), {"__name__": "example"})
