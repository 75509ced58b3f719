"""What every job does: read the words, check, print the plan, run up to its stage, print what it took."""

import errno
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from deltasae_ray.cli import parse
from deltasae_ray.errors import ConfigError, DeltaSaeError, StorageError
from deltasae_ray.logs import write_json
from deltasae_ray.redaction import RedactingFormatter, redacted_output
from deltasae_ray.study.config import FIRST, SHIPPED, SHORTHAND, StudyConfig

JOBS = {
    "sweep": (
        "Run the whole study: adapt, harvest, fit over rank × dictionary size, compare, report. Without"
        " words, the demo."
    ),
    "adapt": "Train LoRA adapters at adapt.ranks, or check and import the given ones.",
    "harvest": "Write the delta shards of every adapter; adapters are trained first where none are given.",
    "fit": "Fit every dictionary of the study in one pass over the shards, without Ray Tune.",
    "reference": (
        "Fit a reference for a base model from corpus.path: three dictionaries a layer, each on a third of"
        " the documents."
    ),
    "diverge": "Compare every dictionary with the reference; write the tables and the report.",
}
"""Job → what it does, as `--help` says it."""


def main(stage: str, words: Sequence[str] | None = None) -> None:
    """Runs a job to its end; a typed error is printed last, as one line, and ends the process with 2, Ctrl-C
    with 130, a bug with 1.

    Args:
        words: `key=value` words; those of the command line where none are given.
    """
    with redacted_output():
        _main(stage, sys.argv[1:] if words is None else words)


def _main(stage: str, words: Sequence[str]) -> None:
    cfg = parse_words(words or (["config=demo"] if stage == "sweep" else []), JOBS[stage])
    try:
        write_json()
    except ConfigError as e:
        _tell(e)
        raise SystemExit(2) from None
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(logging.Formatter("%(levelname)s %(message)s")))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    leave_out_noise()
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


_NOISE = {
    "DeepSpeed": "Setting accelerator to CPU",
    "ray._private.authentication.authentication_token_setup": "Token authentication is enabled",
}
"""Logger → how the warning of it begins that a user cannot act on."""


def leave_out_noise() -> None:
    """Keeps warnings off the terminal that say nothing a user could act on; call it before the libraries are
    imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else its threads warn of every fork
    for name, begins in _NOISE.items():
        logging.getLogger(name).addFilter(_leaves_out(begins))


def _leaves_out(begins: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: not record.getMessage().startswith(begins)


def parse_words(words: Sequence[str], description: str) -> StudyConfig:
    """Reads the words of a study, or prints help or a clear error and exits."""
    return parse(
        StudyConfig, words, shorthand=SHORTHAND, description=description, first=FIRST, shipped=SHIPPED
    )


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
