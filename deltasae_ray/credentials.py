"""Moves credentials out of addresses that a user gave and into this process's environment, where libraries
look for them."""

import os
import re
from urllib.parse import SplitResult, unquote, urlsplit

from deltasae_ray.errors import ConfigError

_ROOT_USER = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*)://(?P<user>[^/@:]*:[^@]*|[^/@]*)@(?P<rest>.*)", re.S)
"""A secret key may hold a slash; a prefix with an @ is no user's, unless a colon stands before its first
slash."""
_TRACKING_USER = re.compile(r"[a-zA-Z][\w+.-]*://(?:[^/@]*@|(?!\[)[^/@:]*:(?!\d{1,5}(?:[/?#]|$))[^@]*@)")
_IN_A_PASSWORD = "in a password, / : @ ? # are written %2F %3A %40 %3F %23"
_ANONYMOUS = "anonymous"
"""What Arrow takes before a gs:// bucket for no credentials at all."""


def bare_tracking_address(uri: str) -> str:
    """Returns the address of an MLflow server without user and password, which MLflow then takes from
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    Raises:
        ConfigError: the address cannot be read.
    """
    parts = _parts(uri, "tracking.uri")
    if parts is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return _without_user(uri)


def bare_root(root: str, *, shared: bool) -> str:
    """Returns a storage root without its access key, which Arrow then takes from AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY.

    Args:
        shared: the study runs on a cluster that is there already, whose processes do not have this one's
        environment.

    Raises:
        ConfigError: the root carries a key and the nodes would not have it, or its scheme knows none.
    """
    match = _ROOT_USER.match(root)
    if match is None or match["user"] == _ANONYMOUS:
        return root
    if match["scheme"].lower() != "s3":
        raise ConfigError(
            f"storage.root={root!r} carries credentials, which only s3:// takes: leave them out and give "
            "them as the store's own library "
            "reads them (GOOGLE_APPLICATION_CREDENTIALS for gs://)"
        )
    if shared:
        raise ConfigError(
            f"storage.root={root!r} carries an access key, and this study joins a cluster: its nodes would "
            "get the key in clear, by ways "
            "that Ray logs. Give the nodes a role for the bucket, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in their environment, "
            "and leave the key out of the root"
        )
    key, _, secret = match["user"].partition(":")
    if not key or not secret:
        raise ConfigError(
            f"storage.root={root!r} has half an access key: give s3://KEY:SECRET@bucket, or "
            "AWS_ACCESS_KEY_ID and its secret"
        )
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = unquote(key), unquote(secret)
    os.environ.pop("AWS_SESSION_TOKEN", None)  # of another key
    return f"s3://{match['rest']}"


def _parts(uri: str, word: str) -> SplitResult | None:
    """The parts of an address that has a user; None where there is none."""
    if _TRACKING_USER.match(uri) is None:
        return None
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as e:
        raise ConfigError(f"{word}={uri!r} cannot be read as an address: {_IN_A_PASSWORD}") from e
    if not parts.hostname:
        raise ConfigError(
            f"{word}={uri!r} names no host: give http://user:password@host:port, and {_IN_A_PASSWORD}"
        )
    return parts


def _without_user(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
