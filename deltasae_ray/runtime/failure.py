"""What ends a run of units: an error that a worker raised, or a gang that was lost too often."""

import traceback
from dataclasses import dataclass

import ray

from deltasae_ray import errors
from deltasae_ray.errors import DeltaSaeError, WorkerError
from deltasae_ray.redaction import redact
from deltasae_ray.runtime.losses import begin_life
from deltasae_ray.runtime.rendezvous import broken_collective

MAX_FAULTS = 5
"""Times a gang that was lost without its node is started again before the stage fails."""


@dataclass(frozen=True)
class Failure:
    """An error that a worker raised. It travels as a result: as an exception Ray would retry it, and wrap its
    type away."""

    type: str
    message: str
    traceback: str = ""
    """Of an error that was not raised on purpose."""
    lost: bool = False
    """A collective broke: the gang is lost, and nothing is wrong with the unit."""

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        if isinstance(error, DeltaSaeError):
            return cls(type(error).__name__, redact(str(error)))
        text = "".join(traceback.format_exception(error))
        return cls(type(error).__name__, redact(str(error)), redact(text), lost=broken_collective(error))

    def error(self) -> DeltaSaeError:
        """The error as the worker raised it on purpose, or a WorkerError that tells the type and the
        traceback of any other."""
        if self.traceback:
            return WorkerError(
                f"a unit of work failed with {self.type}: {self.message}. Nothing of it is stored, all other"
                f" units stay; it would fail again, so no gang was restarted\n{self.traceback}"
            )
        return getattr(errors, self.type)(self.message)


def too_many_faults(gang: str, most: int) -> Failure | None:
    """Puts a new life of this gang's actor on record; a failure where it was lost more often than `most`, and
    its node was not."""
    if not ray.get_runtime_context().get_actor_id() or (lives := begin_life()).faults <= most:
        return None
    return Failure(
        WorkerError.__name__,
        f"{gang} was lost {lives.faults} times on nodes that live: a unit kills it, or its memory runs out"
        " (`ray logs` tells which). All units that are stored stay, and the same command continues",
    )
