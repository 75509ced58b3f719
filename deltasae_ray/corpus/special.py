"""The roles of special tokens: a text may write them, and a token counts by its role, not its place
(pure)."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True)
class Roles:
    """Which ids of a tokenizer are special, and which of these never count."""

    bos: int | None
    eos: int | None
    masked: frozenset[int]
    """BOS, which models give many times the energy of any other token, and padding: read, and never
    counted."""
    special: frozenset[int]
    """All that have a role; the id of unknown words is among them only where it has another role too."""
    written: re.Pattern[str] | None
    """Finds their texts; None where the tokenizer does not tell them."""


_roles: WeakKeyDictionary[Any, Roles] = WeakKeyDictionary()


def roles_of(tokenizer: Any) -> Roles:
    """The roles of a tokenizer's special tokens, asked of it once."""
    if tokenizer not in _roles:
        _roles[tokenizer] = _asked(tokenizer)
    return _roles[tokenizer]


def _asked(tokenizer: Any) -> Roles:
    bos, eos, pad, unknown = (
        getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")
    )
    added = {i: token for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    special = (
        {i for i in (bos, eos, pad) if i is not None}
        | set(getattr(tokenizer, "all_special_ids", ()))
        | set(added)
    )
    if unknown not in (bos, eos):
        special.discard(unknown)
    masked = {bos} | ({pad} if pad not in (eos, unknown) else set())
    texts = {str(token) for i, token in added.items() if i in special}
    pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
    return Roles(bos, eos, frozenset(i for i in masked if i is not None), frozenset(special), pattern)


def written_in(contexts: Iterable[Any], tokenizer: Any) -> list[str]:
    """Tells for each corpus which special tokens its text writes itself, how often, and what becomes of
    them."""
    counts: dict[str, Counter[int]] = {}
    for context in contexts:
        counts.setdefault(context.corpus, Counter()).update(context.written)
    return [
        f"{corpus}: {_describe(counted, tokenizer)}" for corpus, counted in sorted(counts.items()) if counted
    ]


def _describe(counted: Counter[int], tokenizer: Any) -> str:
    roles, name = roles_of(tokenizer), getattr(tokenizer, "convert_ids_to_tokens", str)
    names = [
        f"{name(i)} {count:,}{' (masked)' if i in roles.masked else ''}"
        for i, count in counted.most_common(8)
    ]
    more = f" and {len(counted) - 8} others" if len(counted) > 8 else ""
    dropped = (
        "; BOS that begins a window is dropped, since every context gets one" if roles.bos in counted else ""
    )
    return f"the text itself writes special tokens: {', '.join(names)}{more}{dropped}"
