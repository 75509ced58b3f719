"""Single values of the configuration: their kind by the annotation, and how the parser gets them."""

import re
import typing

from deltasae_ray.errors import ConfigError

_GROUPED = re.compile(r"[-+]?\d[\d.eE+-]*_[\d_.eE+-]*")


def holds(field: object, *kinds: type) -> bool:
    """Whether an annotation names one of these types, at any depth; the values of a Literal do not count."""
    origin = typing.get_origin(field)
    if origin is typing.Literal:
        return False
    return (origin or field) in kinds or any(holds(part, *kinds) for part in typing.get_args(field))


def texts(field: object, key: str, value: object, *, may_be_empty: bool) -> list[str]:
    """The parser's texts of one value.

    Raises:
        ConfigError: null, or an empty text, where the field has a use for neither; a list or mapping within a
            list; what is no number.
    """
    if value is None and (field is None or holds(field, type(None))):
        return ["None"]
    if isinstance(value, (list, tuple)) and (field is None or holds(field, tuple, list)):
        return [text_of(field, key, item) for item in value]
    if isinstance(value, dict) and (field is None or holds(field, dict)):
        return [text_of(field, key, item) for pair in value.items() for item in pair]
    return [text_of(field, key, value, may_be_empty=may_be_empty)]


def text_of(field: object, key: str, value: object, *, may_be_empty: bool = False) -> str:
    if value is None or isinstance(value, str) and not value.strip() and not (may_be_empty and not value):
        raise ConfigError(
            f"{key} is empty (an unset variable?): give it a value, or leave {key} out for its default"
        )
    if not isinstance(value, str):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        raise ConfigError(f"{key}={value!r} is {kind} where {key} takes a single value; `--help` explains it")
    if (
        holds(field, bool)
        and value.lower() in ("true", "false")
        and value in (value.lower(), value.title(), value.upper())
    ):
        return value.title()
    if value.startswith("--") or value == "-h":
        raise ConfigError(f"{key}={value!r} looks like an option: a value must not begin with two dashes")
    if holds(field, int, float) and not holds(field, str) and _GROUPED.fullmatch(value):
        raise ConfigError(
            f"{key}={value}: digits are not grouped in YAML 1.2; write {value.replace('_', '')}"
        )
    _check_scalar(field, key, value)
    return value


def _check_scalar(field: object, key: str, value: str) -> None:
    """Tells what a number or a truth value must look like, which the parser leaves open."""
    if field is None or holds(field, str) or names(field):
        return
    if holds(field, bool) and not holds(field, int, float):
        raise ConfigError(f"{key}={value!r} must be true or false")
    if holds(field, int, float) and not holds(field, bool):
        whole = not holds(field, float)
        try:
            int(value) if whole else float(value)
        except ValueError:
            several = holds(field, tuple, list)
            remedy = f". Several are written out, {key}=[1,2]; there are no ranges" if several else ""
            raise ConfigError(
                f"{key}={value!r} is no {'whole number' if whole else 'number'}{remedy}"
            ) from None


def names(field: object) -> bool:
    """Whether an annotation names single values, at any depth."""
    return typing.get_origin(field) is typing.Literal or any(names(part) for part in typing.get_args(field))
