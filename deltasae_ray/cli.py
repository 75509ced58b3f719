"""`config=a.yaml key=value …` to one frozen dataclass. Later words win; YAML and words share one parser and
its errors."""

import dataclasses
import difflib
import math
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from deltasae_ray import yaml_core
from deltasae_ray.cli_values import holds, texts
from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import expanded
from deltasae_ray.redaction import redact, redacted

T = TypeVar("T")
"""Numbers with underscores, which Python reads and YAML 1.2 does not."""


def parse(
    cls: type[T],
    words: Sequence[str] | None = None,
    *,
    shorthand: Mapping[str, str],
    description: str,
    first: Mapping[str, str] | None = None,
    shipped: Path | None = None,
) -> T:
    """Builds `cls` from `key=value` words (default: the command line), or prints help or a clear error and
    exits.

    Args:
        first: key → a line on it, of the options that `--help` shows before the groups.
        shipped: the folder of NAME.yaml that `config=NAME` stands for.

    Raises:
        SystemExit: 0 after `--help`, 2 after a bad word.
    """
    words = sys.argv[1:] if words is None else list(words)
    try:
        arguments = (
            ["--help"] if {"-h", "--help"} & set(words) else _arguments(cls, words, shorthand, shipped)
        )
    except ConfigError as e:
        sys.stderr.write(f"error: {e}\n")
        raise SystemExit(2) from None
    cfg = tyro.cli(
        cls,
        args=arguments,
        description=(
            f"{description}\n\nWords are written config=FILE.yaml and key=value, for example"
            " corpus.context_len=256 layers=[5,10]; later words win. Each --option below is such a"
            f" key.{_first(first or {})}"
        ),
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
    )
    if odd := [f"{key}={value}" for key, value in _numbers(cfg, "") if not math.isfinite(value)]:
        sys.stderr.write(f"error: {', '.join(odd)}: a finite number is needed\n")
        raise SystemExit(2)
    return cfg


def say(text: str) -> None:
    """Writes to the user: what a job prints is part of its interface, so it goes through one place."""
    sys.stdout.write(f"{redact(text)}\n")
    sys.stdout.flush()


def _numbers(value: object, key: str) -> Iterator[tuple[str, float]]:
    """All floats of a configuration, with their keys."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _numbers(item, key)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), f"{key}.{field.name}" if key else field.name)


def _arguments(
    cls: type, words: Sequence[str], shorthand: Mapping[str, str], shipped: Path | None
) -> list[str]:
    values: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("-")
        if not equals or not key.strip():
            raise ConfigError(f"{word!r} is not a key=value word; see --help")
        if key == "config":
            values.update(_taken(cls, _load_yaml(text, shipped), "", shorthand, f"config={text}"))
        else:
            field = shorthand.get(key, key)
            values.update(
                _taken(cls, _word_value(_field_type(cls, field), word, text), key, shorthand, "the words")
            )
    arguments: list[str] = []
    for key, value in values.items():
        arguments += [
            f"--{key}",
            *texts(_field_type(cls, key), key, value, may_be_empty=_default(cls, key) == ""),
        ]
    return arguments


def _load_yaml(path: str, shipped: Path | None) -> dict:
    by_name = _shipped(path, shipped)
    try:
        text = (by_name or Path(expanded(path, "config"))).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"config={path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"config={path} is not UTF-8 text: {e}") from e
    loaded = yaml_core.load(text, f"config={path}")
    if not isinstance(loaded, dict):
        raise ConfigError(f"config={path} must hold a mapping of keys to values")
    return loaded


def _shipped(name: str, folder: Path | None) -> Path | None:
    """The file of a configuration that is given by its bare name; None for a path.

    Raises:
        ConfigError: neither a configuration nor a file has this name.
    """
    if folder is None or not re.fullmatch(r"[\w-]+", name):
        return None
    if (file := folder / f"{name}.yaml").is_file():
        return file
    if Path(name).is_file():
        return None
    raise ConfigError(
        f"config={name}: no configuration of this name comes with deltasae, and no file has it; give a path,"
        f" or one of {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}"
    )


def _word_value(field: object, word: str, text: str) -> object:
    """What stands after the equals sign: a list or mapping where the field holds one, else the text as it
    is."""
    if text == "null":
        return None
    if not (text.startswith("[") and holds(field, tuple, list) or text.startswith("{") and field is not str):
        return text
    inner = text[1:-1]
    if text.startswith("[") and text.endswith("]") and not any(c in inner for c in "\"'[]{}:"):
        return [part.strip() for part in inner.split(",")] if inner.strip() else []
    if re.search(r",\s*\]$", text):
        raise ConfigError(f"{word!r} ends in a comma: a value is missing there (an unset variable?)")
    return yaml_core.load(text, f"the word {word!r}")


def _taken(cls: type, value: object, key: str, shorthand: Mapping[str, str], where: str) -> dict[str, object]:
    """The values of one word or file by their full keys.

    Raises:
        ConfigError: a key that does not exist, with those it may have been meant for; or one that is given
            twice, in two spellings.
    """
    values: dict[str, object] = {}
    for name, inner in _flatten(cls, value, key):
        full = shorthand.get(name, name.replace("-", "_"))
        if _field_type(cls, full) is None:
            if not str(inner).isdigit() and redacted({full: inner}) != {full: inner}:
                why = "no word takes a secret by its name: set the variable of the environment that it has"
                raise ConfigError(f"there is no {full}, and {why}")
            place = "" if where == "the words" else f"{where}: "
            raise ConfigError(
                f"{place}there is no option {name!r}: did you mean {_nearest(cls, full)}? `--help` lists all"
            )
        if full in values:
            raise ConfigError(f"{where}: {full} stands there twice, in two spellings; take one out")
        values[full] = inner
    return values


def _first(lines: Mapping[str, str]) -> str:
    """The options that matter first, one to a line, for the head of the help."""
    width = max(map(len, lines), default=0)
    rows = "\n".join(f"  {key:<{width}}  {line}" for key, line in lines.items())
    return f"\n\nThe options that matter first:\n{rows}\n\nAll options by group:" if rows else ""


def _nearest(cls: type, key: str) -> str:
    """Up to three keys that are spelt most like one that does not exist, whole and behind the section; at
    least one."""

    def likeness(known: str) -> float:
        behind = known.rpartition(".")[2], key.rpartition(".")[2]
        return (
            2 * difflib.SequenceMatcher(None, known, key).ratio()
            + difflib.SequenceMatcher(None, *behind).ratio()
        )

    nearest = sorted(option_names(cls), key=likeness, reverse=True)[:3]
    return " or ".join(
        name for name in nearest if likeness(name) > 0.9 * likeness(nearest[0]) or name == nearest[0]
    )


def option_names(cls: type, section: str = "") -> Iterator[str]:
    """Every key of a configuration that can be set, with its section."""
    for name, kind in typing.get_type_hints(cls).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from option_names(kind, f"{section}{name}.")
        else:
            yield f"{section}{name}"


def _flatten(cls: type, value: object, key: str) -> Iterator[tuple[str, object]]:
    """Dotted keys down to fields that are no dataclass; unknown keys pass through, so that the parser names
    them."""
    if not isinstance(value, dict) or not dataclasses.is_dataclass(_field_type(cls, key)):
        yield key, value
        return
    for name, inner in value.items():
        yield from _flatten(cls, inner, f"{key}.{name}" if key else str(name))


def _field_type(cls: object, key: str) -> object | None:
    """The annotation that a dotted key ends at: `cls` itself for "", None for a key that does not exist."""
    for name in filter(None, key.split(".")):
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            return None
        cls = typing.get_type_hints(cls).get(name)
    return cls


def _default(cls: object, key: str) -> object:
    """What a field is where nobody sets it; None for a key that does not exist."""
    section, _, name = key.rpartition(".")
    owner = _field_type(cls, section)
    if not (isinstance(owner, type) and dataclasses.is_dataclass(owner)):
        return None
    return next((field.default for field in dataclasses.fields(owner) if field.name == name), None)
