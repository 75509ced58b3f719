"""What a driver of Ray Train or Tune needs around it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deltasae_ray.gangs.nodes import one_machine
from deltasae_ray.stalls import told

_POLL_S = "0.2"


@contextmanager
def training_driver() -> Iterator[None]:
    """Lets Train look after its workers five times a second, and Ctrl-C be a KeyboardInterrupt as everywhere.

    A worker's report, and the end of its work, wait for the controller's next look: every two seconds by default, so that a step
    that reports cannot take less. Train's handler of Ctrl-C ends the whole program with exit code 0 or 1, and stays long after training;
    Tune's lets `fit` return as if the trials had been made. Ray's handler of SIGTERM cannot be told from Train's, and is an interrupt too.
    Workers that were ended because they stood still are told meanwhile.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    if one_machine():
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if threading.current_thread() is not threading.main_thread():
        with told():
            yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        with told():
            yield
    except SystemExit as e:
        raise KeyboardInterrupt from e
    finally:
        signal.signal(signal.SIGINT, before)
