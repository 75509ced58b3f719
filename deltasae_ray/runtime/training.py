"""What a driver of Ray Train or Tune needs around it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deltasae_ray.errors import StorageError
from deltasae_ray.paths import checked_folder, inside
from deltasae_ray.runtime.nodes import one_machine
from deltasae_ray.stalls import warning_of_stalls
from deltasae_ray.storage import Storage

_POLL_S = "0.2"


@contextmanager
def training_driver() -> Iterator[None]:
    """Lets Train look after its workers five times a second, and Ctrl-C be a KeyboardInterrupt as everywhere.

    A worker's report, and the end of its work, wait for the controller's next look: every two seconds by
    default, so that a step that reports cannot take less. Train's handler of Ctrl-C ends the whole program
    with exit code 0 or 1, and stays long after training; Tune's lets `fit` return as if the trials had been
    made. Ray's handler of SIGTERM cannot be told from Train's, and is an interrupt too. Workers that were
    ended because they stood still are told meanwhile.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    if one_machine():
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if threading.current_thread() is not threading.main_thread():
        with warning_of_stalls():
            yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        with warning_of_stalls():
            yield
    except SystemExit as e:
        raise KeyboardInterrupt from e
    finally:
        signal.signal(signal.SIGINT, before)


SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a run's checkpoints: JSON, by names of folders, which it reads, and deletes when they
grow old."""


def check_run(storage: Storage, key: str) -> None:
    """Looks at what is left of a run of Ray Train before another one of its name follows it.

    Raises:
        StorageError: its list of checkpoints is damaged, or names or holds something outside the run's
            folder.
    """
    if storage.is_local:
        checked_folder(storage.local(key), storage.local(""))
    if storage.exists(name := f"{key}/{SNAPSHOT}"):
        for folder in _checkpoints(storage.read_json(name)):
            if (
                not isinstance(folder, str)
                or "/" in folder
                or not inside("", folder).startswith("checkpoint_")
            ):
                raise StorageError(
                    f"{storage.path(name)} names the checkpoint {str(folder)[:80]!r}, which is no folder of"
                    " this run: delete that file, and this training begins again"
                )


def _checkpoints(tree: Any) -> Iterator[Any]:
    """Every name of a checkpoint's folder anywhere in the list."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == "checkpoint_dir_name":
                yield value
            else:
                yield from (
                    value if name.endswith("_dir_names") and isinstance(value, list) else _checkpoints(value)
                )
    elif isinstance(tree, list):
        for value in tree:
            yield from _checkpoints(value)
