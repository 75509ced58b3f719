"""Files are read one after the other in this process, or by Ray Data, a task a file; both yield what was made
of each, in order."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from deltasae_ray import heartbeat, stalls
from deltasae_ray.corpus.files import TextFile
from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.heartbeat import Limits
from deltasae_ray.progress import Bar

log = logging.getLogger(__name__)

T = TypeVar("T")
Read = Callable[[TextFile], T]
"""Makes something small of a file; picklable."""

WORTH_TASKS = 256 * 2**20
"""Bytes from which on several files are worth tasks. These take some ten seconds to start, and as long again
where Ray does not run yet, in which one process reads 100 to 200 MB: on two busy cores 160 MB were slower by
tasks and 640 MB a little faster; more cores not tried."""


class EachFile(Protocol):
    """Yields every file with what `reading()` made of it, in the order of `files`. `reading` is asked anew
    now and then: it may ask less of a file by what came of those before."""

    def __call__(
        self, files: Sequence[TextFile], reading: Callable[[], Read[T]]
    ) -> Iterator[tuple[TextFile, T]]: ...


def reader_of(files: Sequence[TextFile], join: Callable[[], bool] | None) -> EachFile:
    """Chooses how files are read: by this process, or by tasks of Ray.

    This process reads one file, or several small ones, and files of this machine where Ray has others too,
    which would not find them. (Tasks bound to this machine would wait for ever where Ray has no CPU of it, as
    on the head of many clusters.)

    Args:
        join: joins Ray, and says whether it is this machine alone; called only where tasks are worth it.
            None: there is no Ray.
    """
    if join is None or len(files) < 2 or sum(file.size for file in files) < WORTH_TASKS:
        return in_process
    alone, local = join(), [file.name for file in files if file.local]
    if local and not alone:
        log.warning(
            "%s lies on this machine only as far as Ray knows: this process reads it alone, where tasks would"
            " read s3:// or hf://",
            local[0],
        )
        return in_process
    return by_tasks


def in_process(files: Sequence[TextFile], reading: Callable[[], Read[T]]) -> Iterator[tuple[TextFile, T]]:
    for file in files:
        yield file, reading()(file)


def by_tasks(files: Sequence[TextFile], reading: Callable[[], Read[T]]) -> Iterator[tuple[TextFile, T]]:
    """Raises DeltaSaeError: what `reading` raised on purpose, of the first file in order that it was raised
    for."""
    import ray

    with Bar(len(files), "corpus", "files") as bar:
        for wave in waves(files, int(ray.cluster_resources().get("CPU", 1))):
            for index, result in _wave(wave, reading()):
                yield wave[index], result
                bar.update()


def waves(files: Sequence[TextFile], first: int) -> Iterator[Sequence[TextFile]]:
    """`first` files, then each time as many as all before: what these leave room for is about one budget in
    each wave, not in each file."""
    start, size = 0, max(1, first)
    while start < len(files):
        yield files[start : start + size]
        start += size
        size = start


def _wave(files: Sequence[TextFile], read: Read[T]) -> Iterator[tuple[int, T]]:
    import ray

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = 24 * 3600  # nodes may take long to come, and a file to be read
    context.max_errored_blocks = 0
    context.execution_options.preserve_order = True  # else the error that is told would be the first in time
    # By reference: of what Ray writes to its logs, nothing may hold the hub's token.
    work = ray.put((files, read, Limits()))
    with ray.data.DataContext.current(context):
        # Small blocks would coalesce into one, and one task would read everything.
        dataset = ray.data.from_items(
            [{"file": i} for i in range(len(files))], override_num_blocks=len(files)
        )
        dataset = dataset.map_batches(partial(_read, work), batch_size=1, num_cpus=1)
    # What is made of files waits in Ray's object store, which holds new tasks back before it is full; here it
    # is one at a time.
    with stalls.warning_of_stalls():
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            for index, packed in zip(batch["file"], batch["made"], strict=True):
                result = pickle.loads(packed)
                if isinstance(result, DeltaSaeError):
                    raise result
                yield int(index), result


def _read(work: Any, batch: Any) -> dict[str, np.ndarray]:
    """A task. An error that is raised on purpose travels as a result: as an exception Ray would wrap its type
    away."""
    import ray

    files, read, limits = ray.get(work)
    (index,) = batch["file"]
    stalls.watch(
        f"the task that reads {files[index].name.rpartition('/')[2]}", limits
    )  # what stands before may hold a key
    try:
        with heartbeat.unit("file", heartbeat.LOADING_S):
            result = read(files[index])
    except DeltaSaeError as e:
        result = e
    return {"file": batch["file"], "made": np.asarray([pickle.dumps(result)], dtype=object)}
