"""Instruction data: a conversation becomes a prompt, which the model reads, and a response, whose tokens are what is studied."""

from collections.abc import Mapping
from typing import Any

from deltasae_ray.errors import CorpusError

_PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
"""For tokenizers without a chat template: that of the Alpaca data."""
_ALPACA = ("instruction", "input", "output")


def prompt_and_response(row: Mapping[str, Any], tokenizer: Any, *, where: str) -> tuple[str, str]:
    """Renders one row as (prompt, response) by the tokenizer's chat template; without BOS, which is added to every context.

    Args:
        row: `messages` (a list of role and content, the last of the assistant), or Alpaca's `instruction`, `input` and `output`.
        where: file and row, for the error.

    Raises:
        CorpusError: neither of these, or a template that renders the last turn otherwise than by appending it.
    """
    messages = _messages(row, where)
    if not getattr(tokenizer, "chat_template", None):
        return _PLAIN.format(instruction="\n\n".join(m["content"] for m in messages[:-1])), messages[-1]["content"]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    if not whole.startswith(prompt):
        raise CorpusError(f"{where}: the tokenizer's chat template changes the prompt once it is answered; render the text yourself")
    return prompt.removeprefix(tokenizer.bos_token or ""), whole[len(prompt) :]


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    found = row.get("messages")
    if found is None and isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        instruction = "\n\n".join(row[name] for name in _ALPACA[:2] if row.get(name))
        found = [{"role": "user", "content": instruction}, {"role": "assistant", "content": row["output"]}]
    if not isinstance(found, list) or len(found) < 2 or found[-1].get("role") != "assistant":
        raise CorpusError(
            f"{where} is no conversation: corpus.format=chat takes `messages` that end with the assistant, or instruction, input and output"
        )
    return [{"role": str(m["role"]), "content": str(m["content"])} for m in found]
