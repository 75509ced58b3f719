"""YAML as version 1.2 reads it, with scalars kept as they were written, so that each field's own type decides
what a text means.

PyYAML's loaders follow version 1.1, which reads 5:10 as 310, 010 as 8, `on` as true and 2024-01-01 as a date.
"""

import re
from collections.abc import Sequence

import yaml

from deltasae_ray.errors import ConfigError

_NULL = ("", "~", "null", "Null", "NULL")
_CORE_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")
} | {"!"}
_MAX_VALUES = 100_000
"""More than any configuration has; anchors that name each other would multiply without an end."""

_MAX_CHARACTERS, _MAX_DEPTH = 1_000_000, 100

Value = str | None | list["Value"] | dict[str, "Value"]
"""A text as it was written, null, a list, or a mapping."""


def load(text: str, where: str) -> Value:
    """Reads one YAML document.

    Args:
        where: what the text is called in errors.

    Raises:
        ConfigError: the text is no YAML, holds several documents, a key twice, a merge key, a tag of its own,
            or an anchor that holds itself.
    """
    if len(text) > _MAX_CHARACTERS or _depth(text) > _MAX_DEPTH:
        raise ConfigError(
            f"{where} is nested deeper or is longer than any configuration: a bracket that is never closed?"
        )
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if node is None else _Reading(where).value(node, ())
    except (yaml.YAMLError, ValueError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{where} is not valid YAML: {e}") from e
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply for a configuration") from None


def _depth(text: str) -> int:
    """The most brackets that are open at once; PyYAML takes minutes over some thousands of them."""
    deepest = depth = 0
    for character in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if character in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest


class _Reading:
    """One pass over the nodes of a document, which counts what it makes of them."""

    def __init__(self, where: str) -> None:
        self.where, self.values = where, 0

    def value(self, node: yaml.Node, above: Sequence[yaml.Node]) -> Value:
        self.values += 1
        place = f"{self.where}, line {node.start_mark.line + 1}"
        if self.values > _MAX_VALUES or any(node is other for other in above):
            raise ConfigError(
                f"{place}: anchors (&) and aliases (*) that hold themselves, or too many values: write the"
                " values out"
            )
        if node.tag not in _CORE_TAGS:
            raise ConfigError(
                f"{place}: the tag {node.tag!r} is none that a configuration may have: write the plain value"
            )
        inside = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, inside) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, inside)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return None if plain and node.value in _NULL else str(node.value)

    def _mapping(self, node: yaml.MappingNode, inside: Sequence[yaml.Node]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, inside)
            place = f"{self.where}, line {key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise ConfigError(f"{place}: the key {key!r} is no name")
            if key == "<<":
                raise ConfigError(
                    f"{place}: merge keys (<<) are not of YAML 1.2: write the values out, or give several"
                    " config= files"
                )
            if key in values:
                raise ConfigError(f"{place}: the key {key!r} stands there twice; take one out")
            values[key] = self.value(value_node, inside)
        return values
