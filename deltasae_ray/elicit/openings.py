"""What sampled texts begin with: nothing, a line break, a common word, and pieces of neutral text."""

from collections.abc import Sequence
from typing import Any

from deltasae_ray.corpus.special import roles_of

WORDS = ("The", "\n\n")
"""Neutral openings: one alone can be a blind spot (BOS alone ends at once where an adapter is amplified)."""
PIECES = 3
"""Pieces of neutral text that are openings too."""
PIECE = 3
"""Tokens of each."""


def openings(tokenizer: Any, neutral: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Different openings, BOS first where the tokenizer has one.

    Args:
        neutral: texts that have nothing to do with the adapter, as tokens.
    """
    bos: tuple[int, ...] = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    special = frozenset(roles_of(tokenizer).special)
    rows = [bos, *((*bos, *tokenizer.encode(word, add_special_tokens=False)) for word in WORDS)]
    if template := _bare_template(tokenizer):
        rows.append(template)
    for text in neutral[:PIECES]:
        plain = [t for t in text if t not in special]
        rows.append((*bos, *plain[:PIECE]))
    return list(dict.fromkeys(o for o in rows if o))


def _bare_template(tokenizer: Any) -> tuple[int, ...]:
    """How a chat model's answer begins where nothing was asked; empty where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return ()
    from jinja2 import TemplateError

    turn = [{"role": "user", "content": ""}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except TemplateError:  # a template that refuses an empty turn
        return ()
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def ends(tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text."""
    roles = roles_of(tokenizer)
    return frozenset(
        t for t in (tokenizer.eos_token_id, tokenizer.pad_token_id, *roles.masked) if t is not None
    )


def insertable(tokenizer: Any, size: int) -> tuple[int, ...]:
    """Tokens that a text can hold: of the model's `size` those with a meaning that is not special."""
    special = frozenset(roles_of(tokenizer).special) | frozenset(tokenizer.all_special_ids)
    return tuple(t for t in range(min(size, len(tokenizer))) if t not in special)
