"""What the arena's job does: read the words, run, and end as every job ends."""

import sys
from collections.abc import Sequence

from deltasae_ray.arena.config import ArenaConfig
from deltasae_ray.cli import parse
from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.redaction import redacted_output

_FIRST = {
    "recipes": "adapters to make; none: all 64",
    "methods": "methods to score; none: all",
    "storage.root": "folder that all of it is kept in",
}


_DESCRIPTION = (
    "Train adapters of known truth, let methods say what each learnt, and score their claims. What is made is"
    " kept: the same command continues."
)


def main(words: Sequence[str] | None = None, *, without_words: Sequence[str] = ()) -> None:
    """Runs the arena; a typed error is printed as one line and ends the process with 2, Ctrl-C with 130.

    Args:
        words: `key=value` words; those of the command line where none are given.
        without_words: what stands for an empty command line.
    """
    with redacted_output():
        given = (sys.argv[1:] if words is None else words) or without_words
        cfg = parse(ArenaConfig, given, shorthand={}, description=_DESCRIPTION, first=_FIRST)
        from deltasae_ray.arena.run import run
        from deltasae_ray.study.cluster_check import connect, resolve_root

        try:
            run(cfg, resolve_root(cfg.storage.root), connect)
        except DeltaSaeError as e:
            sys.stderr.write(f"\n{type(e).__name__}: {e}\n")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            sys.stderr.write("\nInterrupted. Nothing made so far is lost: the same command continues.\n")
            raise SystemExit(130) from None
