"""What every job does: read the words, check, print the plan, run up to its stage, print what it took."""

import gc
import logging
import sys
import traceback
from collections.abc import Sequence

from deltasae_ray.cli import parse
from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.redaction import RedactingFormatter, redacted_output
from deltasae_ray.sweep.config import SHORTHAND, StudyConfig


def main(stage: str, description: str | None, *, without_words: Sequence[str] = ()) -> None:
    """Runs a job to its end; a typed error is printed last, as one line, and ends the process with 2, Ctrl-C with 130, a bug with 1.

    Args:
        without_words: what stands for an empty command line.
    """
    with redacted_output():
        _main(stage, description, without_words)


def _main(stage: str, description: str | None, without_words: Sequence[str]) -> None:
    cfg = parse(StudyConfig, sys.argv[1:] or without_words, shorthand=SHORTHAND, description=description or "")
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(logging.Formatter("%(levelname)s %(message)s")))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Thousands of modules are loaded, none of which is garbage: a collector that looks through them again and again takes a seventh of it.
    gc.set_threshold(100_000, 50, 50)
    from deltasae_ray.sweep.run import run

    try:
        run(stage, cfg)
    except DeltaSaeError as e:
        also = "".join(f"  {note}\n" for note in getattr(e, "__notes__", ()))
        sys.stderr.write(f"\n{type(e).__name__}: {e}\n{also}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Nothing made so far is lost: the same command continues.\n")
        raise SystemExit(130) from None
    except Exception:  # noqa: BLE001 - a bug: Python would print it past the redaction
        sys.stderr.write(traceback.format_exc())
        raise SystemExit(1) from None
