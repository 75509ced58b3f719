"""The reference is made from the code, and says all of it."""

import re

import deltasae_ray as ds
from deltasae_ray.analyses.table import COLUMNS
from deltasae_ray.cli import option_names
from deltasae_ray.command.main import HELPERS
from deltasae_ray.command.reference import pages
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.main import JOBS
from tests.study.submitted import REPOSITORY

DOCS = REPOSITORY / "docs"


def test_every_command_every_name_of_the_library_and_every_error_has_its_entry() -> None:
    made = pages()
    assert all(f"deltasae_ray.{home}.{name}" in made["api.md"] for name, home in ds._HOMES.items())
    assert all(f"| `deltasae {name}` |" in made["command.md"] for name in (*JOBS, *HELPERS))
    sections = dict(re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", made["errors.md"]))
    assert "ConfigError" in sections and len(sections) > 10
    assert [name for name, text in sections.items() if "\n- " not in text] == [], "no message is known"
    assert "adapt.ranks=… must be different positive numbers" in sections["ConfigError"]


def test_every_option_has_its_default_and_its_meaning() -> None:
    rows = [line.split(" | ") for line in pages()["configuration.md"].splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] and {row[0].strip("| `") for row in rows} == set(
        option_names(StudyConfig)
    )
    assert all(len(row[2].split()) >= 2 for row in rows), [row for row in rows if len(row[2].split()) < 2]


def test_every_column_is_explained() -> None:
    text = (DOCS / "files.md").read_text()
    assert [c for c in COLUMNS if f"| `{c}`" not in text] == []
