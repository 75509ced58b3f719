"""The address of the Ray that a study joins, tried before Ray would try it for minutes."""

import logging
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from deltasae_ray.errors import ConfigError, ResourceError

log = logging.getLogger(__name__)
ANSWER_S = 12.0
"""Seconds within which a cluster must answer."""
_REMEDY = (
    "start the cluster (ray start --head), correct RAY_ADDRESS, or unset it for a Ray of this machine's own"
)
_ADDRESS = re.compile(r"(?P<scheme>ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):(?P<port>\d+)")


def answering_address(within: float = ANSWER_S) -> str | None:
    """What `ray.init` is to join: None leaves the choice to it, "local" has it start a Ray of its own.

    Raises:
        ConfigError: RAY_ADDRESS is no address.
        ResourceError: nobody answers at it, or none that is Ray.
    """
    given = os.environ.get("RAY_ADDRESS", "").strip()
    if given == "local":
        return None
    if given and given != "auto":
        check_answers(f"RAY_ADDRESS={given!r}", *parsed(given), within, remedy=_REMEDY)
        return None
    return _noted_address(within) if not given else _auto(within)


def parsed(address: str) -> tuple[str, int, bool]:
    """Host, port and whether it is that of a Ray Client server.

    Raises:
        ConfigError: it is no host:port or ray://host:port.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ConfigError(
            f"RAY_ADDRESS={shown(address)!r} is no address of Ray: give host:port, as 10.0.0.5:6379 (ports"
            " are 1 to 65535), ray://host:10001, auto or local, or unset it for a Ray of this machine's own"
        )
    return match["host"].strip("[]"), int(match["port"]), bool(match["scheme"])


def shown(address: str) -> str:
    """The address without what may be a password in it."""
    return re.sub(r"//[^/]*@", "//***@", address)


def check_answers(  # noqa: PLR0913 - three of them are choices with defaults
    what: str,
    host: str,
    port: int,
    client: bool,
    within: float = ANSWER_S,
    *,
    remedy: str = _REMEDY,
    asks: Callable[..., None] | None = None,
) -> None:
    """Raises ResourceError where nobody answers at the address within some seconds, or who does is no Ray.

    Args:
        client: a Ray Client server, of which only the port is tried.
        asks: takes the address and the seconds left, and raises where no Ray answers.
    """
    end, error = time.monotonic() + within, ""
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.2, min(5.0, end - time.monotonic()))).close()
            break
        except OSError as e:  # a head that is just being started refuses for a moment
            error = str(e)
        if time.monotonic() > end - within / 2:
            raise ResourceError(
                f"{what}: nobody answers at {host}:{port} within {within:.0f} s ({error}): {remedy}"
            )
        time.sleep(0.5)
    if not client and os.environ.get("RAY_USE_TLS", "0").lower() not in (
        "1",
        "true",
    ):  # with TLS, Ray's own client has the certificates
        try:
            (asks or _ask)(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}", max(1.0, end - time.monotonic())
            )
        except Exception as e:  # Ray's errors here are of several kinds, and all mean the same
            reason = str(e).strip().splitlines()[-1] if str(e).strip() else type(e).__name__
            raise ResourceError(
                f"{what}: what listens at {host}:{port} does not answer as Ray's head within {within:.0f} s"
                f" ({reason}): {remedy}"
            ) from e


def _ask(address: str, within: float) -> None:
    """Asks Ray's head over gRPC whether it is there; any answer counts, also that a token is needed."""
    import grpc

    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        grpc.channel_ready_future(channel).result(timeout=within)


def _noted_address(within: float) -> str | None:
    """No RAY_ADDRESS: Ray joins the cluster that `ray start` noted last. A note of one that is gone would
    have it wait."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        address = note.read_text().strip()
    except OSError:
        return None
    try:
        check_answers(f"{note} names {address}", *parsed(address), min(within, 5.0), remedy="")
    except (ConfigError, ResourceError) as e:
        log.warning(
            "%s. A Ray of this machine's own is started; delete the file if that cluster is gone for good",
            str(e).rstrip(": "),
        )
        return "local"
    return None


def _auto(within: float) -> str | None:
    """RAY_ADDRESS=auto: the cluster that `ray start` noted last, or a head that runs here."""
    from ray._private import services

    try:
        address = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, OSError, ValueError) as e:
        raise ResourceError(f"RAY_ADDRESS='auto': no Ray runs on this machine ({e}): {_REMEDY}") from e
    if address:
        check_answers("RAY_ADDRESS='auto'", *parsed(address), within)
    return None
