"""A bar on the driver's terminal, fed by what the training worker reports."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import UserCallback
from ray.util.queue import Empty, Queue

from deltasae_ray.progress import Bar


class ReportToQueue(UserCallback):
    """Runs in Train's controller, another process than the driver's; never waits."""

    def __init__(self, queue: Queue) -> None:
        self._actor: Any = queue.actor

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002 - Ray's signature
        self._actor.put_nowait.remote(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002 - Ray's signature
        self._actor.put_nowait.remote({"lost": type(next(iter(worker_exceptions.values()))).__name__})


@contextmanager
def training_bar(name: str, max_tokens: int) -> Iterator[ReportToQueue]:
    """A bar over training tokens; inside, pass the yielded callback to the trainer's RunConfig."""
    queue = Queue(actor_options={"num_cpus": 0})
    over = threading.Event()
    with Bar(max_tokens, f"adapt {name}", "tokens") as bar:
        reader = threading.Thread(target=_follow, args=(queue, bar, over), daemon=True)
        reader.start()
        try:
            yield ReportToQueue(queue)
        finally:
            over.set()
            reader.join(timeout=10)
            queue.shutdown(force=True)


def _follow(queue: Queue, bar: Bar, over: threading.Event) -> None:
    while True:
        ending = over.is_set()
        try:
            for report in iter(lambda: queue.get(timeout=0.5), None):
                _show(bar, report)
        except Empty:
            pass
        if ending:
            return


def _show(bar: Bar, report: dict[str, Any]) -> None:
    if "lost" in report:
        bar.note(f"worker lost ({report['lost']}), starting again from its checkpoint")
        return
    bar.set(report["tokens"])
    bar.note(f"held-out gain {report['gain']:.3f} ± {report['gain_se']:.3f}")
