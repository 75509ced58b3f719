"""Ctrl-C around Ray Train."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_interrupt() -> Iterator[None]:
    """Gives Ctrl-C back: Train leaves a handler behind that ends the whole program, with exit code 0, long after training."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
