"""The checkpoint of a half-fitted dictionary: one file in its own folder, so that any later run finds it."""

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from deltasae_ray.errors import DictionaryError, StorageError
from deltasae_ray.storage import Storage


def _file(key: str) -> str:
    return f"{key}/checkpoint.safetensors"


def write(storage: Storage, key: str, state: dict[str, Any]) -> None:
    """Replaces the checkpoint of the dictionary `key` by a trainer's state, atomically."""
    plain = {name: value for name, value in state.items() if name != "tensors"}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state["tensors"].items()}
    storage.write_bytes(_file(key), save(tensors, metadata={"state": json.dumps(plain)}))


def read(storage: Storage, key: str) -> dict[str, Any] | None:
    """The trainer's state, or None where there is no checkpoint.

    Raises:
        DictionaryError: the file is damaged.
    """
    if not storage.exists(_file(key)):
        return None
    data = storage.read_bytes(_file(key))
    try:
        return {"tensors": load(data), **_state(data[8 : 8 + int.from_bytes(data[:8], "little")])}
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise DictionaryError(
            f"{storage.path(_file(key))} is damaged ({e}): delete it, and this dictionary starts afresh"
        ) from e


def steps_done(storage: Storage, key: str) -> int:
    """Optimizer steps that the checkpoint has behind it; 0 where there is none. Reads the header only.

    Raises:
        StorageError: it is there and cannot be read: taken for none, steps would be repeated.
    """
    if not storage.exists(_file(key)):
        return 0
    try:
        with storage.fs.open_input_file(storage.path(_file(key))) as file:
            header = int.from_bytes(file.read(8), "little")
            return int(_state(file.read(min(header, file.size())))["steps_done"])
    except (
        FileNotFoundError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # just being finished, or damaged, which `read` tells
        return 0
    except OSError as e:
        if not storage.exists(_file(key)):  # an object store says so only when it is read
            return 0
        raise StorageError(
            f"{storage.path(_file(key))} cannot be read ({e}): the same command continues once it can"
        ) from e


def remove(storage: Storage, key: str) -> None:
    storage.delete_file(_file(key))


def _state(header: bytes) -> dict[str, Any]:
    return json.loads(json.loads(header)["__metadata__"]["state"])
