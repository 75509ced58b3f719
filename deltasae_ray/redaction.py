"""Takes secrets out of a text before it is printed, logged, stored or sent."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

HIDDEN = "***"
"""What stands in place of a secret."""
_SHORTEST = 8  # an environment variable's value that is shorter would also be found in harmless words

_WORDS = {
    "secret", "secrets", "token", "password", "passwd", "passphrase", "pwd", "pat", "sig", "signature",
    "credential",
    "credentials", "apikey", "accesskey", "authkey", "authtoken", "privatekey", "secretkey", "cookie",
    "authorization",
}  # fmt: skip
_BEFORE_KEY = {
    "access", "api", "account", "auth", "private", "secret", "encryption", "master", "shared", "hmac",
    "signing", "session", "ssh",
}  # fmt: skip
_KINDS_OF_TEXT_TOKEN = {
    "pad", "eos", "bos", "unk", "sep", "mask", "cls", "special", "image", "audio", "start", "end", "begin",
    "context", "next",
    "first", "last", "per", "each", "think", "stop",
}  # fmt: skip
_WHERE_IT_LIES = {
    "path", "file", "dir", "folder", "mode", "type", "name", "endpoint", "provider", "length", "len", "count",
    "size",
}  # fmt: skip

_URI_USER = re.compile(
    r"""([a-z][a-z0-9+.-]*:(?:/|\\/){2})((?:[^\s/'"<>\\]|['"](?![,:;\])}\s]|$))+@)""", re.I
)
_URI_USER_WITH_SLASH = re.compile(
    r"""([a-z][a-z0-9+.-]*://)((?!\[)[^\s/@:'"<>]*:(?!\d{1,5}(?:[/\s?#]|$))[^\s@'"<>]*@)""", re.I
)
_URI_USER_OF_A_PATH = re.compile(r"""([a-z][a-z0-9+.-]+:/)((?!/)[^\s/@:'"<>]*:[^\s/@'"<>]+@)""", re.I)
"""A path library makes one slash of an address's two."""
_URI_USER_QUOTED = re.compile(r"(%3A%2F%2F)((?:(?!%2F)[^\s&'\"@/])*?%40)", re.I)
_QUERY = re.compile(r"""((?:[?&]|%3F|%26|&amp;)([\w.\-]+)(?:=|%3D))((?:(?!%26)[^\s&#'"<>])+)""", re.I)
_ASSIGNED = re.compile(
    r"""((?<![\w.\-?&])--?)?(?<![\w.\-])(["']?)([A-Za-z_][\w.\-]*)\2(\s*=>?\s*|\s*:\s*)"""
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&)\]}'"<>]+)"""
)
_HEADER = re.compile(
    r"""((?:proxy-)?authorization["']?\s*[:=]\s*["']?)((?:(?:bearer|basic|token|digest|aws4-hmac-sha256)\s+)?[^\s'"]+)""",
    re.I,
)
_SCHEME = re.compile(r"\b(Bearer|Basic|bearer|basic)(\s+)([A-Za-z0-9._~+/=-]{8,})")
_SHAPES = (
    re.compile(r"(?<![A-Za-z0-9])hf_(?:(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{8,}|[a-z]{20,})"),
    re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA|AIDA|AROA)[A-Z0-9]{12,}"),
    re.compile(
        r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,})"
    ),
    re.compile(r"(?<![A-Za-z0-9])(?:AIza[\w-]{30,}|ya29\.[\w-]{20,}|dapi[0-9a-f]{32})"),
    re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replaces credentials in URIs, secret parameters and headers, tokens of known shape and secret
    environment variables' values by ***.

    Args:
        environment: variables whose secret values are hidden wherever they stand; this process's by default.
    """
    for value in _secret_values(os.environ if environment is None else environment):
        text = text.replace(value, HIDDEN)
    for pattern in _SHAPES:
        text = pattern.sub(HIDDEN, text)
    if "@" in text:
        text = _URI_USER.sub(rf"\1{HIDDEN}@", text)
        text = _URI_USER_WITH_SLASH.sub(rf"\1{HIDDEN}@", text)
        text = _URI_USER_OF_A_PATH.sub(rf"\1{HIDDEN}@", text)
    text = _URI_USER_QUOTED.sub(rf"\1{HIDDEN}%40", text)
    text = _QUERY.sub(
        lambda m: m[1] + HIDDEN if is_secret(m[2]) or m[2].lower() in ("key", "auth") else m[0], text
    )
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    text = _SCHEME.sub(
        lambda m: m[1] + m[2] + HIDDEN if len(m[3]) >= 16 or re.search(r"[\d=]", m[3]) else m[0], text
    )
    return _ASSIGNED.sub(_assigned, text)


def redacted(value: Any) -> Any:
    """Redacts every text in a JSON-like value, and whatever stands under a name that says it is a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            k: HIDDEN if isinstance(k, str) and isinstance(v, str) and v and is_secret(k) else redacted(v)
            for k, v in value.items()
        }
    return [redacted(v) for v in value] if isinstance(value, (list, tuple)) else value


def is_secret(name: str) -> bool:
    """Tells by the name of a parameter or variable whether its value is a secret."""
    parts = [p for p in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) if p]
    if not parts or parts[-1] in _WHERE_IT_LIES:
        return False
    if parts[0] == "x" and len(parts) > 2 and parts[1] in ("amz", "goog"):
        return parts[-1] not in ("algorithm", "date", "expires")
    if "access" in parts and parts[-1] == "id":  # GoogleAccessId, AWSAccessKeyId
        return True
    for before, part in zip([None, *parts], parts, strict=False):
        if part in _WORDS and not (part == "token" and before in _KINDS_OF_TEXT_TOKEN):
            return True
        if part in ("key", "keys") and before in _BEFORE_KEY:
            return True
    return False


class RedactingFormatter(logging.Formatter):
    """Formats as another formatter does, and redacts the whole of it, tracebacks included."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redact(self._inner.format(record))


class _RedactingStream:
    """A text stream that redacts what is written to it."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        self._inner.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redacts, inside, all that this process's Python code writes to its standard streams, whichever library
    does."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_RedactingStream, before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of secret variables in every spelling that a text may hold, the longest first."""
    values: set[str] = set()
    for name, value in environment.items():
        secret = is_secret(name) or "KEY" in name.upper().split("_")
        if secret and len(value) >= _SHORTEST and not _is_path(value):
            values |= set(_spellings(value))
    return sorted(values, key=lambda v: (-len(v), v))


def _is_path(value: str) -> bool:
    """Tells a variable such as GOOGLE_APPLICATION_CREDENTIALS, which names a file, from a key that begins
    with a slash."""
    return "/" in value and "\0" not in value and os.path.exists(os.path.expanduser(value))


def _spellings(value: str) -> Iterator[str]:
    yield value
    yield quote(value, safe="")
    yield quote(value)
    yield quote_plus(value)
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]


def _assigned(match: re.Match[str]) -> str:
    """Hides the value of `name=value`, `"name": "value"` and `NAME: value` where the name says that it is a
    secret."""
    quoted, name, between, value = match[2], match[3], match[4], match[5]
    plain = name.isalpha() and name.islower()
    if not is_secret(name) or value.startswith(HIDDEN):
        return match[0]
    if ":" in between and not quoted and plain and value[:1] not in "\"'":
        # A sentence such as "the token: give one", unless it begins a line.
        start = match.string.rfind("\n", 0, match.start(3)) + 1
        if match.string[start : match.start(3)].strip(" -"):
            return match[0]
    mark = value[0] if value[0] in "\"'" else ""
    if mark and len(value) == 2:
        return match[0]
    return match[0][: match.start(5) - match.start(0)] + mark + HIDDEN + mark
