"""Starts a Ray of this machine alone: its ports answer on loopback only, and its processes end with the
driver."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from deltasae_ray.gangs import watch
from deltasae_ray.redaction import redact

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own switch for machines whose firewall asks: with 0, every process of a Ray binds to 127.0.0.1."""


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
    from ray._private import ray_constants

    mark = uuid4().hex
    before = {name: os.environ.get(name) for name in (_LOOPBACK, watch.MARK)}
    os.environ[_LOOPBACK], os.environ[watch.MARK] = "0", mark
    joins = ray_constants.ENABLE_RAY_CLUSTER  # Ray read its switch when it was imported
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        if sys.platform.startswith("linux"):
            _start_watch(mark)
        with _bare_command_line():
            ray.init(address="local", **options)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = joins
        for name, value in before.items():  # what else this process starts is none of Ray's
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    _started_here.append(mark)


def join(**options: Any) -> None:
    """Joins the Ray that `ray.init` finds.

    Args:
        options: as `ray.init` takes them.
    """
    import ray

    with _bare_command_line():
        ray.init(**options)


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


def _start_watch(mark: str) -> None:
    """In a session of its own: neither Ctrl-C nor a signal to the driver's group may end it first."""
    command = [sys.executable, "-I", "-S", str(Path(watch.__file__)), str(os.getpid()), mark]
    clean = {name: value for name, value in os.environ.items() if name != watch.MARK}
    subprocess.Popen(
        command,
        env=clean,
        cwd="/",
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
