"""What MLflow's own failures become: a typed error where they come first, and one line below the error that
came before them."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from deltasae_ray.errors import DeltaSaeError, StorageError
from deltasae_ray.redaction import redact
from deltasae_ray.tracking.store import quiet

if TYPE_CHECKING:
    from mlflow import MlflowClient

_EXPECTED = ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
"""MLflow's answers that its caller asks for."""
_NOTE = "MLflow could not record this either"


def typed(client: "MlflowClient", store: str) -> "MlflowClient":
    """Wraps the client so that a call that fails raises StorageError, naming the store and the cause in one
    line."""
    return cast("MlflowClient", _TypedClient(client, store))


@contextlib.contextmanager
def noted_below(error: BaseException) -> Iterator[None]:
    """Lets what fails inside be one line below `error`, which came first and is the one that is reported."""
    try:
        yield
    except Exception as late:  # noqa: BLE001 - whatever it is, it came second
        if not any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ())):
            error.add_note(f"{_NOTE}: {_line(late.__cause__ or late)}")


class _TypedClient:
    def __init__(self, client: "MlflowClient", store: str) -> None:
        self._client, self._store = client, store

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return self._with_named_failures(name, value) if callable(value) else value

    def _with_named_failures(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_raise(*args: Any, **kwargs: Any) -> Any:
            try:
                # MLflow also logs a traceback of hundreds of lines, above what is raised here.
                with quiet(logging.CRITICAL):
                    return call(*args, **kwargs)
            except DeltaSaeError:
                raise
            except Exception as e:  # MLflow lets through what its database, its server or the disk raises
                if getattr(e, "error_code", None) in _EXPECTED:
                    raise
                raise StorageError(
                    f"MLflow's runs in {self._store} failed at {name}: {_line(e)}. Free space there, or see "
                    "that the server runs and lets "
                    "you in; what the study made is not lost: run the same command again"
                ) from e

        return call_or_raise


def _line(error: BaseException) -> str:
    """Type and first line of an error: MLflow's go on with the statement that failed."""
    lines = str(error).strip().splitlines() or [""]
    return redact(f"{type(error).__name__}: {lines[0][:300]}".rstrip())
