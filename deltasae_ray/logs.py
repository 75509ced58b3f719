"""Log lines as JSON, each with its run, stage, gang and unit; where DELTASAE_LOGS=json asks for them."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deltasae_ray.errors import ConfigError
from deltasae_ray.heartbeat import LABELS
from deltasae_ray.redaction import RedactingFormatter

VARIABLE = "DELTASAE_LOGS"
FIELDS = ("run", "stage", "gang", "unit")
"""In every line, null where there is none. `run` is Ray's id of the job."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: LABELS.get(name) for name in FIELDS},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def wants_json() -> bool:
    """Whether lines are to be JSON.

    Raises:
        ConfigError: DELTASAE_LOGS holds something else than json or text.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "text", "json"):
        raise ConfigError(f"{VARIABLE}={asked!r}: give json, or text, which is the default")
    return asked == "json"


def write_json() -> None:
    """Has this process write its lines to stderr as JSON, from INFO on of this package, where that is asked
    for; called again, it does nothing."""
    package = logging.getLogger("deltasae_ray")
    if not wants_json() or any(isinstance(h.formatter, _Redacted) for h in package.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted(JsonFormatter()))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False


class _Redacted(RedactingFormatter):
    """The formatter of `write_json`, by which its handler is known."""


def label(**labels: str) -> None:
    """Names what this process does from now on."""
    LABELS.update(labels)


@contextmanager
def labelled(**labels: str) -> Iterator[None]:
    """Inside, lines and metrics of this process bear these labels."""
    before = dict(LABELS)
    LABELS.update(labels)
    try:
        yield
    finally:
        LABELS.clear()
        LABELS.update(before)
