"""Starts a Ray of this machine alone: its ports answer on loopback only, and its processes end with the
driver."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from deltasae_ray.redaction import redact
from deltasae_ray.runtime import watch

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own switch for machines whose firewall asks: with 0, every process of a Ray binds to 127.0.0.1."""
_LEVEL = "RAY_BACKEND_LOG_LEVEL"
"""Ray's own: what its C++ core logs at least, to files and, in a driver, to the terminal."""


def joins_cluster() -> bool:
    """Tells whether `ray.init()` would join a Ray that runs, by RAY_ADDRESS, by a job's environment or on
    this machine."""
    import ray
    from ray._private import services

    if ray.is_initialized():
        return not _started_here
    nowhere: Any = None  # what `ray.init()` passes for no address, though it is annotated as text
    return services.get_ray_address_from_environment(nowhere, None) not in (None, "local")


_started_here: list[str] = []
"""Marks of the Rays that this process has started."""


def start_local(**options: Any) -> None:
    """Starts Ray on loopback, with a process beside it that ends what is left of it once this one has ended,
    however it did.

    Args:
        options: as `ray.init` takes them.
    """
    import ray

    mark = uuid4().hex
    os.environ[watch.MARK] = mark
    try:
        guard = _start_watch(mark) if sys.platform.startswith("linux") else None
        with _on_loopback(), _bare_command_line(), _quiet():
            ray.init(address="local", **options)
        if guard is not None:
            _tell_folder(guard)
    finally:
        del os.environ[watch.MARK]  # what else this process starts is none of Ray's
    _started_here.append(mark)


def join(**options: Any) -> None:
    """Joins the Ray that `ray.init` finds, also one that another process started on loopback.

    Args:
        options: as `ray.init` takes them.
    """
    import ray
    from ray._private import services

    nowhere: Any = None
    address = options.get("address") or services.get_ray_address_from_environment(nowhere, None)
    loopback = _on_loopback() if _answers_on_loopback_only(address or "") else nullcontext()
    with loopback, _bare_command_line(), _quiet():
        ray.init(**options)


def _answers_on_loopback_only(address: str) -> bool:
    """Whether a Ray of this machine refuses who comes by the machine's own address, as which Ray reads
    127.0.0.1."""
    from ray._private import services

    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        return False
    with socket.socket() as s:
        s.settimeout(5)
        return s.connect_ex((services.get_node_ip_address(), int(port))) != 0


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Lets a Ray that is started or joined inside take 127.0.0.1 for this machine's address."""
    from ray._private import ray_constants

    before, joins = os.environ.get(_LOOPBACK), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_LOOPBACK] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray read its switch when it was imported
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = joins
        del os.environ[_LOOPBACK]
        if before is not None:
            os.environ[_LOOPBACK] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the C++ core of a Ray that is started or joined inside from printing to a driver's terminal what
    its user can do nothing about, as that a restart could fail; RAY_BACKEND_LOG_LEVEL, where set, decides."""
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "fatal"
    try:
        yield
    finally:
        del os.environ[_LEVEL]


@contextmanager
def _bare_command_line() -> Iterator[None]:
    """Keeps secrets out of the command line that Ray stores of a driver, and shows in its dashboard."""
    from ray._private import utils

    whole = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redact(whole())
    try:
        yield
    finally:
        utils.get_entrypoint_name = whole


def _tell_folder(guard: subprocess.Popen) -> None:
    """Says where all processes of this Ray write, and nobody else does."""
    from ray._private import worker

    node: Any = worker.global_worker.node
    folder = os.path.realpath(node.get_session_dir_path())
    with suppress(BrokenPipeError), guard.stdin as line:  # type: ignore[union-attr]
        line.write(f"{folder}\n".encode())


def _start_watch(mark: str) -> subprocess.Popen:
    """In a session of its own: neither Ctrl-C nor a signal to the driver's group may end it first."""
    command = [sys.executable, "-I", "-S", str(Path(watch.__file__)), str(os.getpid()), mark]
    clean = {name: value for name, value in os.environ.items() if name != watch.MARK}
    return subprocess.Popen(
        command,
        env=clean,
        cwd="/",
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
