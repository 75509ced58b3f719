"""`config=a.yaml key=value …` to one frozen dataclass. Later words win; YAML and words share one parser and its errors."""

import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import tyro
import yaml

from deltasae_ray.errors import ConfigError
from deltasae_ray.redaction import redact

T = TypeVar("T")


def parse(cls: type[T], words: Sequence[str] | None = None, *, shorthand: Mapping[str, str], description: str) -> T:
    """Builds `cls` from `key=value` words (default: the command line), or prints help or a clear error and exits.

    Raises:
        SystemExit: 0 after `--help`, 2 after a bad word.
    """
    words = sys.argv[1:] if words is None else list(words)
    try:
        arguments = ["--help"] if {"-h", "--help"} & set(words) else _arguments(cls, words, shorthand)
    except ConfigError as e:
        sys.stderr.write(f"error: {e}\n")
        raise SystemExit(2) from None
    return tyro.cli(
        cls,
        args=arguments,
        description=f"{description}\n\nWords are written config=FILE.yaml and key=value, for example corpus.context_len=256 "
        "layers=[5,10]; later words win. Each --option below is such a key.",
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
    )


def say(text: str) -> None:
    """Writes to the user: what a job prints is part of its interface, so it goes through one place."""
    sys.stdout.write(f"{redact(text)}\n")
    sys.stdout.flush()


def _arguments(cls: type, words: Sequence[str], shorthand: Mapping[str, str]) -> list[str]:
    values: dict[str, object] = {}

    def take(found: dict[str, object]) -> None:
        values.update({shorthand.get(key, key): value for key, value in found.items()})

    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("-")
        if not equals:
            raise ConfigError(f"{word!r} is not a key=value word; see --help")
        if key == "config":
            take(_flatten(cls, _load_yaml(text), ""))
        else:
            take(_flatten(cls, _shell_value(word, text), key))
    arguments: list[str] = []
    for key, value in values.items():
        arguments += [f"--{key}", *_texts(value)]
    return arguments


def _load_yaml(path: str) -> dict:
    try:
        loaded = yaml.safe_load(Path(path).read_text())
    except OSError as e:
        raise ConfigError(f"config={path} cannot be read: {e.strerror}") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"config={path} is not valid YAML: {e}") from e
    if not isinstance(loaded, dict):
        raise ConfigError(f"config={path} must hold a mapping of keys to values")
    return loaded


def _shell_value(word: str, text: str) -> object:
    # Only brackets and these words go through YAML: it would read 0123 as 83 and 1e3 as text.
    if text[:1] in ("[", "{") or text in ("true", "false", "null"):
        if text.startswith("[") and text.endswith("]") and not any(c in text for c in "\"'{:"):
            return [part.strip() for part in text[1:-1].split(",") if part.strip()]
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ConfigError(f"{word!r} is not valid YAML after the equals sign: {e}") from e
    return text


def _flatten(cls: type, value: object, key: str) -> dict[str, object]:
    """Dotted keys down to fields that are no dataclass; unknown keys pass through, so that the parser names them."""
    section = _field_type(cls, key)
    if not isinstance(value, dict) or not dataclasses.is_dataclass(section):
        return {key: value}
    flat: dict[str, object] = {}
    for name, inner in value.items():
        flat.update(_flatten(cls, inner, f"{key}.{name}" if key else str(name)))
    return flat


def _field_type(cls: object, key: str) -> object | None:
    """The annotation that a dotted key ends at: `cls` itself for "", None for a key that does not exist."""
    for name in filter(None, key.split(".")):
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            return None
        cls = typing.get_type_hints(cls).get(name)
    return cls


def _texts(value: object) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in _texts(item)]
    return [str(value)]
