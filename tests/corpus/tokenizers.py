"""A real tokenizer of bytes for texts and conversations, with a chat template where one is asked for."""

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TAGS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role')"
    " }}{% endif %}[{{ m.role }}]{{ m.content }}{% for call in m.tool_calls or [] %}({{ call.name }}){%"
    " endfor %}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A chat template that refuses a system role, as those of several families do."""


@lru_cache
def byte_tokenizer(template: str = "") -> Any:
    """<pad> is 0, <s> 1 and begins a text, </s> 2; every byte is a token."""
    from deltasae_ray.models.load import load_tokenizer
    from tests.tiny import save_tokenizer

    with TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        tokenizer = load_tokenizer(Path(folder))
    tokenizer.chat_template = template or None
    return tokenizer
