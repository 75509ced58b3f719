"""`deltasae screen`: adapters read from their weights alone, among reference adapters."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasae_ray.cli import parse, say
from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.models.config import ModelConfig

_DESCRIPTION = (
    "Read adapters from their weights alone, without a forward pass, and place every figure among those of"
    " reference adapters."
)


@dataclass(frozen=True)
class ScreenConfig:
    """Which adapters are screened, and among which."""

    base: str = "builtin:gemma3-270m"
    """The base model of all of them: a folder, a hub id, or `builtin:gemma3-270m`."""
    adapters: tuple[str, ...] = ()
    """Folders of the adapters to screen."""
    reference: tuple[str, ...] = ()
    """Folders of adapters of the same base, trained alike, that are known to be ordinary. None: figures
    without a place."""


def main(words: Sequence[str]) -> int:
    """Prints every adapter's figures, tokens and places; returns 2 after a typed error, else 0."""
    cfg = parse(ScreenConfig, words, shorthand={}, description=_DESCRIPTION)
    from deltasae_ray.analyses.screen.figures import CANNOT_TELL, FIGURES
    from deltasae_ray.analyses.screen.run import Ends, screen
    from deltasae_ray.models.load import load_tokenizer
    from deltasae_ray.models.source import resolve_model

    try:
        folder = resolve_model(ModelConfig(base=cfg.base)).folder
        screenings = screen(
            [Path(a) for a in cfg.adapters], [Path(r) for r in cfg.reference], Ends.of(folder)
        )
        tokenizer = load_tokenizer(folder)
    except DeltaSaeError as e:
        sys.stderr.write(f"\n{type(e).__name__}: {e}\n")
        return 2
    for one in screenings:
        say(f"\n{one.name} ({one.seconds:.2f} s)")
        for name, meaning in FIGURES.items():
            place = one.standings[name]
            among = f"{place.above} of {place.of} above, p {place.p:.2f}" if place.of else "no reference"
            say(f"  {name:<15}{place.value:>10.4g}  {among:<26}{meaning}")
        say(f"  reads most:  {_words(tokenizer, one.screened.read)}")
        say(f"  writes most: {_words(tokenizer, one.screened.written)}")
    say(f"\n{CANNOT_TELL}")
    return 0


def _words(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Tokens with their line breaks and odd characters written out."""
    return " ".join(repr(tokenizer.decode([t])) for t in tokens)
