"""The README is short, in short sentences, and what it says to run runs."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from deltasae_ray.command.main import HELPERS
from deltasae_ray.study.main import JOBS, parse_words

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MADE = {"api.md", "command.md", "configuration.md", "errors.md", "glossary.md", "index.md"}
"""Pages that `make site` makes from the code."""
PAGES = [
    ROOT / "README.md",
    *(
        p
        for p in sorted((ROOT / "docs").glob("*.md"))
        if p.name not in MADE and not p.name.startswith("tutorial-")
    ),
]
COMMAND = re.compile(r"(?m)^ {4}((?:\S*/)?deltasae .+|make [a-z-]+|ray job submit .+?)(?:\s+#.*)?$")


def prose(text: str) -> list[str]:
    """Paragraphs and items of lists, without code, tables, headings and pictures."""
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    lines = [line for line in text.splitlines() if not re.match(r" {4}|\||#|!\[", line) and " · " not in line]
    blocks = re.split(r"\n\s*\n|\n(?=- )", "\n".join(lines))
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block.split())) for block in blocks]
    return [block.removeprefix("- ") for block in plain if block]


def sentences(block: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.?!:;*])\s+(?=[\WA-Z`*])", block) if re.search(r"\w", s)]


def test_the_readme_has_at_most_500_words_in_sentences_of_at_most_18_on_average() -> None:
    said = [s for block in prose(README) for s in sentences(block)]
    words = [len(s.split()) for s in said]
    assert sum(words) <= 500 and sum(words) / len(words) <= 18
    assert max(words) <= 35, max(said, key=lambda s: len(s.split()))


@pytest.mark.parametrize(
    ("term", "explained"),
    [
        ("LoRA adapter", "A LoRA adapter is a small set of weights"),
        ("latents", "called latents"),
        ("reference", "a dictionary of the base model, the *reference*"),
        ("missing share", "The *missing share* weighs, by energy"),
    ],
)
def test_a_term_is_explained_where_it_first_stands(term: str, explained: str) -> None:
    body = README.partition("see it?**")[2]
    body = re.sub(r"!\[[^\]]*\]", "", body).replace("\n", " ")
    assert body.lower().index(term.lower().strip("*")) >= body.index(explained)


def test_python_of_the_readme_prints_what_stands_below_it() -> None:
    page = "README.md"
    blocks = re.findall(r"```python\n((?:.*\n)*?)```\n(?:\n((?: {4}.*\n)+))?", (ROOT / page).read_text())
    assert any(output for _, output in blocks)
    names: dict[str, object] = {}
    for code, output in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page, "exec"), names)  # noqa: S102 - our own
        assert printed.getvalue().split() == output.split(), code


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist_and_their_words_are_read(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_commands(page.read_text(), tmp_path, monkeypatch)


def check_commands(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of a page exists, and its words are read."""
    monkeypatch.chdir(folder)
    Path("jobs").symlink_to(ROOT / "jobs")
    Path("study.yaml").write_text("layers: [5]\n")
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    joined = re.sub(r"\\\n\s*", "", text)
    for line in COMMAND.findall(joined):
        program, *words = shlex.split(line.partition("  #")[0])
        if program == "make":
            assert words[0] in targets
        elif program == "ray":
            job = words[words.index("--") + 1 :]
            assert (ROOT / job[1]).is_file() and parse_words(job[2:], "")
        else:
            assert words[0] in {*JOBS, *HELPERS}
            assert words[0] in HELPERS or parse_words(words[1:], "")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_link_between_files_is_dead(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_demos_figures_are_those_of_its_last_evidence() -> None:
    evidence = sorted((ROOT / "tests/evidence").glob("*-demo.txt"))[-1]
    told = evidence.read_text()
    drawn = re.findall(r"(0\.\d\d) \[(0\.\d\d), (0\.\d\d)\]", (ROOT / "docs/demo.svg").read_text())
    assert len(drawn) == 6 and all(f"{v} [{low}, {high}]" in told for v, low, high in drawn)
    values = [float(v) for v, _, _ in drawn]
    assert f".{min(values) * 100:.0f} to .{max(values) * 100:.0f}" in README
