"""Which text, how it is cut into contexts, and how many tokens of it are read."""

from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import expanded


@dataclass(frozen=True)
class CorpusConfig:
    """Text is JSONL (`id` optional, `text`), Parquet, Arrow or plain text, or a folder of these, local, s3://
    or gs://, JSONL and text also packed (gzip, zstd, bzip2, xz); a hub dataset
    (`hf://datasets/owner/name[@revision]`, read by ranges; with HF_HUB_OFFLINE=1 from the hub's cache); or a
    `builtin:` name. Large texts of several files are read by Ray tasks."""

    path: tuple[str, ...] = ("builtin:shakespeare",)
    """The text the adapters were, or will be, trained on. Several paths are read one after the other."""
    unrelated: tuple[str, ...] = ("builtin:kjv", "builtin:pydoc")
    """Texts the adapters were not trained on; each becomes a corpus of its own in the report."""
    format: Literal["text", "chat"] = "text"
    """chat: rows of `path` are conversations (`messages`, or Alpaca's instruction, input and output); prompts
    are read and masked."""
    chat_template: str = ""
    """How conversations are rendered. Empty: by the base tokenizer's chat template, or if it has none by the
    one in the given adapters' folders. `adapter`: by theirs in any case. A file (chat_template.jinja) or
    folder: by that. `alpaca`: in the Alpaca format."""
    bad_rows: Literal["error", "skip"] = "error"
    """What a row that cannot be read does: its file and number end the run, or it is left out and counted in
    the plan."""
    trained_on: tuple[str, ...] = ()
    """Texts that given adapters were trained on, where known: documents found in them are warned of."""
    text_field: str = "text"
    """Field of JSONL and Parquet rows that holds the document."""
    context_len: int = 128
    """Tokens of text per context, BOS not counted."""
    contexts_per_unit: int = 8
    """Contexts that are harvested together and stored in one file per source; fewer take less memory in a
    pass."""
    max_contexts_per_doc: int = 4
    """Spreads the token budget over many documents: evenly spaced windows are kept, at most this many per
    document."""
    fit_tokens: int = 0
    """Tokens harvested to train dictionaries on. 0: what the largest fit.d_sae and the smallest fit.k ask
    for, at least 26,500."""
    eval_tokens: int = 16_000
    """Tokens harvested to evaluate on."""
    unrelated_share: float = 0.5
    """Share of both budgets that goes to unrelated text, in equal parts."""
    split: tuple[float, float, float] = (0.4, 0.35, 0.25)
    """Shares of the documents for adapter training, dictionary training and evaluation, by a hash of the
    document's id. Of unrelated text, on which no adapter is trained, the first share goes to the other
    two."""
    marker_share: float = 0.0
    """Share of domain contexts into which the planted marker and its reply are written, a truth to be found;
    none with given adapters."""
    seed: int = 0
    """Salt of the hash that deals documents to splits and markers to contexts: another number is another draw
    of the text."""

    def __post_init__(self) -> None:
        for field in ("path", "unrelated", "trained_on"):
            object.__setattr__(
                self, field, tuple(expanded(path, f"corpus.{field}") for path in getattr(self, field))
            )
        if not self.path:
            raise ConfigError("corpus.path is empty: name at least one text")
        if self.context_len < 8:
            raise ConfigError(f"corpus.context_len={self.context_len} is below 8 tokens: raise it")
        for field in ("contexts_per_unit", "max_contexts_per_doc", "eval_tokens"):
            if getattr(self, field) < 1:
                raise ConfigError(f"corpus.{field}={getattr(self, field)} must be at least 1")
        if self.fit_tokens < 0:
            raise ConfigError(
                f"corpus.fit_tokens={self.fit_tokens} must be at least 1, or 0 for what fit.d_sae asks for"
            )
        if any(s <= 0 for s in self.split) or abs(sum(self.split) - 1) > 1e-6:
            raise ConfigError(f"corpus.split={self.split} must be three positive shares that add up to 1")
        for field in ("unrelated_share", "marker_share"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"corpus.{field}={getattr(self, field)} must be in [0, 1)")
