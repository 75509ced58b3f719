"""What every job does: read the words, check, print the plan, run up to its stage, print what it took."""

import errno
import gc
import logging
import sys
import traceback
from collections.abc import Sequence

from deltasae_ray.cli import parse
from deltasae_ray.errors import DeltaSaeError, StorageError
from deltasae_ray.redaction import RedactingFormatter, redacted_output
from deltasae_ray.study.config import FIRST, SHORTHAND, StudyConfig


def main(stage: str, description: str | None, *, without_words: Sequence[str] = ()) -> None:
    """Runs a job to its end; a typed error is printed last, as one line, and ends the process with 2, Ctrl-C
    with 130, a bug with 1.

    Args:
        without_words: what stands for an empty command line.
    """
    with redacted_output():
        _main(stage, description, without_words)


def _main(stage: str, description: str | None, without_words: Sequence[str]) -> None:
    cfg = parse(
        StudyConfig,
        sys.argv[1:] or without_words,
        shorthand=SHORTHAND,
        description=description or "",
        first=FIRST,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(logging.Formatter("%(levelname)s %(message)s")))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Thousands of modules are loaded, none of which is garbage: a collector that looks through them again and
    # again takes a seventh of it.
    gc.set_threshold(100_000, 50, 50)
    from deltasae_ray.study.run import run

    try:
        run(stage, cfg)
    except DeltaSaeError as e:
        _tell(e)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Nothing made so far is lost: the same command continues.\n")
        raise SystemExit(130) from None
    except Exception as e:  # noqa: BLE001 - a full disk under Ray's own files, or a bug
        # Python itself would print it past the redaction.
        if full := _full_disk(e):
            _tell(full)
            raise SystemExit(2) from None
        sys.stderr.write(traceback.format_exc())
        raise SystemExit(1) from None


def _tell(error: DeltaSaeError) -> None:
    """Prints a typed error, and one line for each failure that came after it."""
    also = "".join(f"  {note}\n" for note in getattr(error, "__notes__", ()))
    sys.stderr.write(f"\n{type(error).__name__}: {error}\n{also}")


def _full_disk(error: BaseException) -> StorageError | None:
    """The typed error of a full disk, where that is what began a chain of errors that others raised."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    for e in reversed(chain):  # the first in time is the last of the chain
        lines = [
            line.strip()
            for line in str(e).splitlines()
            if "No space left on device" in line or "disk is full" in line
        ]
        if lines or (isinstance(e, OSError) and e.errno == errno.ENOSPC):
            return StorageError(
                f"a disk is full: {lines[0] if lines else e}. Free space or choose another storage.root, then"
                " run again"
            )
    return None
