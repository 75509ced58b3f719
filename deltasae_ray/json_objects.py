"""Objects of JSON that name their file where a field is missing."""

import json
from typing import Any

from deltasae_ray.errors import StorageError


class JsonObject(dict):
    """An object of JSON that names its file where a field is missing."""

    def __init__(self, file: str, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._file = file

    def __missing__(self, name: str) -> Any:
        raise StorageError(
            f"{self._file} has no field {name!r}, so it is damaged or of another version: delete it and run"
            " again"
        )

    def __reduce__(self) -> tuple:
        return JsonObject, (self._file, dict(self))


def parse_object(data: bytes, file: str) -> JsonObject:
    """Reads an object of JSON, whose missing fields are named with `file`.

    Raises:
        StorageError: it is no JSON, or holds no object.
    """
    try:
        value = json.loads(data, object_hook=lambda fields: JsonObject(file, fields))
    # bytes that are no text, half a document, a thousand brackets
    except (ValueError, RecursionError) as e:
        raise StorageError(f"{file} is not valid JSON: delete it and run again") from e
    if not isinstance(value, JsonObject):
        raise StorageError(
            f"{file} holds a {type(value).__name__} and no JSON object: delete it and run again"
        )
    return value
