"""Ray Train's controller, which waits for the workers and is waited for, is watched like them; imports Ray
Train."""

import logging
import signal
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from deltasae_ray import stalls
from deltasae_ray.errors import WorkerError
from deltasae_ray.heartbeat import Limits

log = logging.getLogger(__name__)


class WatchedController(UserCallback):
    """Has the process watched that it is unpickled in, which is the controller's. Give it to a trainer's
    RunConfig."""

    def __init__(self, what: str, limits: Limits) -> None:
        self._what, self._limits = what, limits

    def __reduce__(self) -> tuple:
        return _watched_controller, (self._what, self._limits)


def _watched_controller(what: str, limits: Limits) -> WatchedController:
    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        stalls.watch(what, limits)  # a worker that gets it too changes its name afterwards
    return WatchedController(what, limits)


class _Interruptible(TorchTrainer):
    """A trainer whose run is never too near its end for Ctrl-C.

    Ray's handler aborts the run and exits; of a run that has just ended there is nothing to abort, and it
    returns as if nobody had asked.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        super()._register_sigint_handler(controller)
        aborts: Any = signal.getsignal(signal.SIGINT)

        def handler(signum: int, frame: Any) -> None:
            aborts(signum, frame)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, handler)


def train_to_the_end(words: dict[str, Any], max_failures: int) -> None:
    """Runs a TorchTrainer of these words, again where its controller or a node was lost: a run of the same
    name continues from its checkpoints. Lost nodes are no failures of it, and do not count.

    Raises:
        WorkerError: the controller was lost more often than `max_failures` allows.
        TrainingFailedError: workers failed more often than that.
    """
    left = max(0, max_failures)
    while True:
        try:
            _Interruptible(**words).fit()
            return
        except TrainingFailedError as e:
            failures = getattr(e, "worker_failures", {}).values()
            if not any(lost_with_its_node(failure) for failure in failures):
                raise
            log.warning("a node was lost, and training goes on from what is stored: %s", e)
        except RayActorError as e:
            if lost_with_its_node(e):
                log.warning("the node of Ray Train's controller was lost, and training goes on: %s", e)
                continue
            if not left:
                raise WorkerError(
                    f"Ray Train's controller was lost {max_failures + 1} times: {e}. The same command"
                    " continues"
                ) from e
            left -= 1
            log.warning("Ray Train's controller was lost, and training goes on from what is stored: %s", e)


def lost_with_its_node(error: BaseException) -> bool:
    """Whether an actor is gone because its node is: lost, drained or taken back by the cloud."""
    return isinstance(error, RayActorError) and (error.preempted or "its node has died" in str(error))
