"""The chat template of conversations: the base tokenizer's, the adapters', a named one, or the Alpaca
format."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltasae_ray.corpus.chat import ALPACA
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.tally import briefly
from deltasae_ray.errors import CorpusError
from deltasae_ray.paths import expanded

ADAPTER = "adapter"
"""Value of `corpus.chat_template` for the adapters' template, also where the base tokenizer has one."""
TEMPLATE_FILES = ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"]
"""Where a folder may hold a template; the first that does is taken, as transformers takes it."""
_MARKS = re.compile(r"<\|[^<>|\s]{1,40}\|>|<\w{1,20}_of_\w{1,20}>")
"""Turn markers, as templates write them."""

Template = str | dict[str, str]
"""One template, or several by name, of which transformers takes the one called "default"."""


def set_template(cfg: CorpusConfig, tokenizer: Any, adapters: Mapping[str, Path]) -> tuple[str, ...]:
    """Gives a tokenizer the template that conversations are rendered by, and returns sentences on the choice.

    Args:
        tokenizer: the base's; its `chat_template` is set where the choice is another.
        adapters: name → folder of the adapters that were given, which may hold a template.

    Raises:
        CorpusError: there is no template, adapters have different ones, or a file with one cannot be read.
    """
    own: Template | None = getattr(tokenizer, "chat_template", None) or None
    if cfg.chat_template == ALPACA:
        although = ", although the base tokenizer has a chat template" if own else ""
        return (f"conversations are rendered in the Alpaca format (corpus.chat_template={ALPACA}){although}",)
    if cfg.chat_template and cfg.chat_template != ADAPTER:
        path = Path(expanded(cfg.chat_template))
        if not (template := read_template(path)):
            raise CorpusError(
                f"corpus.chat_template={path} holds no chat template in {', '.join(TEMPLATE_FILES)}"
            )
        return _given(tokenizer, template, f"the chat template of {path} (corpus.chat_template)")
    theirs = {name: read for name, folder in adapters.items() if (read := read_template(folder))}
    first, *others = theirs or [""]
    if different := [name for name in others if theirs[name] != theirs[first]]:
        raise CorpusError(
            f"adapters {first} and {different[0]} come with different chat templates, and one text is read"
            f" for all: study them apart, or name one template by corpus.chat_template=FOLDER (or {ALPACA})"
        )
    if own and cfg.chat_template != ADAPTER:
        if theirs and theirs[first] != own:
            return (
                (
                    f"conversations are rendered by the base tokenizer's chat template; adapter {first} comes"
                    f" with another one, which corpus.chat_template={ADAPTER} takes"
                ),
            )
        return ()
    if not theirs:
        raise CorpusError(
            f"corpus.format=chat: {'' if own else 'the base tokenizer has no chat template, and '}no adapter"
            " folder holds one: set corpus.chat_template to a chat_template.jinja, to a folder that holds"
            f" one, or to {ALPACA} for the plain Alpaca format"
        )
    without = [name for name in adapters if name not in theirs]
    also = f"; {', '.join(without)} came without one" if without else ""
    return _given(tokenizer, theirs[first], f"the chat template in the folder of adapter {first}{also}")


def read_template(path: Path) -> Template | None:
    """The chat template of a file, or of a folder as transformers saves it; None where a folder holds none.

    Raises:
        CorpusError: the file is missing, cannot be read, or is no template.
    """
    if path.is_dir():
        templates = (read_template(path / name) for name in TEMPLATE_FILES if (path / name).is_file())
        return next((template for template in templates if template), None)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix != ".json":
            return text
        template = json.loads(text)["chat_template"] if "chat_template" in text else None
        if isinstance(template, list):
            template = {str(entry["name"]): entry["template"] for entry in template}
    except OSError as e:
        raise CorpusError(f"the chat template {path} cannot be read: {e.strerror}") from e
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise CorpusError(
            f"{path} holds no chat template that can be read: {type(e).__name__}: {briefly(e)}"
        ) from e
    texts = template.values() if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise CorpusError(f"{path}: `chat_template` is {type(template).__name__} and no text")
    return template


def _given(tokenizer: Any, template: Template, called: str) -> tuple[str, ...]:
    tokenizer.chat_template = template
    marks = sorted(
        set(_MARKS.findall(template if isinstance(template, str) else " ".join(template.values())))
    )
    cut = [mark for mark in marks if len(tokenizer.encode(mark, add_special_tokens=False)) > 1]
    pieces = (
        f"{', '.join(cut)} of the chat template are no tokens of the base tokenizer, and are read in pieces"
    )
    return (f"conversations are rendered by {called}", *([pieces] if cut else []))
