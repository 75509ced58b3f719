"""A progress bar in optimizer steps, read from manifests and checkpoints: the only truth about what is
fitted."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from deltasae_ray.errors import StorageError
from deltasae_ray.fit.fitting import steps_behind
from deltasae_ray.progress import Bar
from deltasae_ray.storage import Storage


@contextmanager
def progress(
    storage: Storage, keys: Sequence[str], steps: int, description: str, *, show: bool
) -> Iterator[None]:
    """Shows how far the dictionaries `keys`, of `steps` optimizer steps each, have come while the body
    runs."""
    if not show:
        yield
        return
    stop = threading.Event()
    done = dict.fromkeys(keys, 0)
    with Bar(steps * len(keys), f"{description} ({len(keys)} dictionaries)", "steps") as bar:

        def look() -> None:
            with suppress(StorageError):  # what a bar cannot see now it sees later; it decides nothing
                for key in keys:
                    if done[key] < steps:
                        done[key] = steps_behind(storage, key, steps)
            bar.set(sum(done.values()))

        def watch() -> None:
            while not stop.wait(1.0 if storage.is_local else 10.0):  # object stores charge for every look
                look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            look()
