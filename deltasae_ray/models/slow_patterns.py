"""Regular expressions of an adapter are tried on the model's names by a process that can be ended: some never
come to an end."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deltasae_ray.errors import AdapterError

TRIED_S = 20.0
"""Seconds that a pattern may take over all names; one that ends takes thousandths."""
_REPEATS = re.compile(r"[*+{]")
"""What a pattern without these does is bounded by its length."""
_TRY = """
import json, re, sys
pattern, names = json.load(sys.stdin)
for name in names:
    for form in (pattern, rf"(.*\\.)?({pattern})$", rf".*\\.{pattern}\\.(\\d+)\\."):
        re.match(form, name), re.fullmatch(form, name)
"""
"""Matches in the ways in which PEFT does: a whole name, its end, and the part before a layer's number."""


def patterns_of(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The field and text of everything in an adapter's configuration that PEFT reads as a regular
    expression."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(text := config.get(field), str):
            yield field, text
    for field in ("rank_pattern", "alpha_pattern"):
        yield from ((field, text) for text in config.get(field) or ())
    layers = config.get("layers_pattern") or ()
    yield from (("layers_pattern", text) for text in ([layers] if isinstance(layers, str) else layers))


def check_patterns_end(path: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises AdapterError where a pattern of the configuration at `path` does not come to an end on the names
    of the model's modules."""
    there = list(names)
    for field, text in patterns_of(config):
        if not _REPEATS.search(text):
            continue
        command = [sys.executable, "-I", "-S", "-c", _TRY]
        try:
            # What does not compile in one of the forms ends at once, and PEFT says so.
            subprocess.run(
                command,
                input=json.dumps([text, there]).encode(),
                timeout=TRIED_S,
                capture_output=True,
                check=False,
            )
        except subprocess.TimeoutExpired as e:
            raise AdapterError(
                f"{path}: {field} holds {text[:80]!r}, which does not come to an end on this model's names"
                f" within {TRIED_S:g} s: it repeats what is repeated already. Name the modules in a list, or"
                " write it without the outer repetition"
            ) from e
