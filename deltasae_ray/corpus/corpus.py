"""The corpus of a study: every split's units within its token budget, and a key made of their content."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from deltasae_ray.batches import SPLITS, TokenBatch
from deltasae_ray.corpus.chat import chat_of
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import MIN_TOKENS, Context, Tokenizer, group, take
from deltasae_ray.corpus.documents import DOMAIN, corpora
from deltasae_ray.corpus.files import files_of
from deltasae_ray.corpus.overlap import TextSearch, fingerprints_in
from deltasae_ray.corpus.shortlist import Merged
from deltasae_ray.corpus.special import written_in
from deltasae_ray.corpus.tally import Tally
from deltasae_ray.corpus.tasks import reader_of
from deltasae_ray.errors import ConfigError, CorpusError
from deltasae_ray.storage import digest

log = logging.getLogger(__name__)
ADAPT_TOKENS = 1_000_000
"""Most tokens set apart to train adapters on, unless a study trains on more."""
_NO_BOS = (
    "the tokenizer has no BOS: the first token of every context is left out of training and geometry in its"
    " place"
)


@dataclass(frozen=True)
class Corpus:
    """Units of dictionary training and evaluation, and the domain's contexts set apart for adapter
    training."""

    units: tuple[TokenBatch, ...]
    """Splits "fit" and "eval", sorted by name within a split."""
    adapt: tuple[Context, ...]
    """Contexts of the domain's adapter-training documents, documents in hash order: the first of each, then
    the second, and so on."""
    overlap: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Split → its documents whose text the adapters were trained on, as far as that is known."""
    notes: tuple[str, ...] = ()
    """What reading the text left out, coerced or fell back to: a sentence each, for the plan and the page."""
    stream: str = ""
    """Of a part of a corpus that is streamed: digest of all its windows in their order, which dictionaries
    depend on."""

    @cached_property
    def key(self) -> str:
        """Digest of the harvested units' names, and of the stream they begin."""
        names = [u.name for u in self.units]
        return digest([*names, self.stream] if self.stream else names)

    def of(self, split: str) -> tuple[TokenBatch, ...]:
        return tuple(u for u in self.units if u.split == split)

    def num_tokens(self, split: str | None = None, corpus: str | None = None) -> int:
        """Real tokens, BOS included."""
        return sum(
            u.num_tokens for u in self.units if split in (None, u.split) and corpus in (None, u.corpus)
        )

    def num_documents(self, split: str, corpus: str | None = None) -> int:
        return len({d for u in self.of(split) if corpus in (None, u.corpus) for d in u.doc_ids})

    @property
    def overlap_warnings(self) -> list[str]:
        """A sentence per split that holds documents of the adapters' training text."""
        return [
            f"{len(documents)} of {self.num_documents(split)} {split} documents are also in the adapters'"
            f" training text, for example {documents[0]}: what is said of held-out text is not"
            for split, documents in self.overlap.items()
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """Corpora present, the domain first."""
        return tuple(sorted({u.corpus for u in self.units}, key=lambda n: (n != DOMAIN, n)))


def build_corpus(
    cfg: CorpusConfig,
    tokenizer: Tokenizer,
    *,
    adapt_tokens: int = ADAPT_TOKENS,
    join: Callable[[], bool] | None = None,
) -> Corpus:
    """Reads, splits, cuts and groups the texts of `cfg`, in one streaming pass: only what the budgets may
    need is kept. Whatever reads the files, the corpus is the same.

    Args:
        adapt_tokens: most tokens set apart to train adapters on; what is beyond is not held in memory.
        join: joins Ray, and says whether it is this machine alone; called where texts are of several files
            and large, which tasks then read. None: this process reads all.

    Raises:
        CorpusError: a text is missing or empty, or a split that is needed got no document.
        ConfigError: `fit_tokens` is left to a study, which knows its dictionaries.
    """
    if not cfg.fit_tokens:
        raise ConfigError(
            "corpus.fit_tokens=0 leaves the number to a study's dictionaries: set it where text is read"
            " without a study"
        )
    chat = chat_of(cfg, tokenizer)  # first: a misspelt word is told before a text is read
    named = {
        name: [file for path in paths for file in files_of(path)] for name, paths in corpora(cfg).items()
    }
    trained_on = [file for path in cfg.trained_on for file in files_of(path)]
    chosen: dict[str, list[Context]] = {split: [] for split in SPLITS}
    fingerprints: dict[str, bytes] = {}
    notes: list[str] = []
    for name, files in named.items():
        merged = Merged(name, tokenizer, cfg, _budgets(name, len(named) - 1, cfg, adapt_tokens))
        for file, read in reader_of(files, join)(files, merged.reading):
            merged.add(file, read)
        merged.check()
        notes += [f"{name}: {note}" for note in merged.tally.notes()]
        for split, shortlist in merged.shortlists.items():
            chosen[split] += take(shortlist.contexts(), shortlist.budget)
            fingerprints |= shortlist.fingerprints()
    _check_splits(chosen, cfg, notes)
    units = [u for split in ("fit", "eval") for u in group(chosen[split], split, cfg.contexts_per_unit)]
    texts = {
        split: {c.doc_id: fingerprints[c.doc_id] for c in contexts} for split, contexts in chosen.items()
    }
    left_out = Tally(cfg.bad_rows)
    looked_for = frozenset(texts["fit"].values()) | frozenset(texts["eval"].values())
    search = TextSearch(looked_for, cfg.text_field, chat, cfg.bad_rows)
    searched = reader_of(trained_on, join)(trained_on, lambda: search)
    overlap = _overlap(texts, fingerprints_in(searched, cfg.text_field, left_out))
    notes += [f"corpus.trained_on: {note}" for note in left_out.notes()]
    notes += [_NO_BOS] if tokenizer.bos_token_id is None else []
    notes += written_in([c for split in SPLITS for c in chosen[split]], tokenizer)
    corpus = Corpus(tuple(units), tuple(chosen["adapt"]), overlap, tuple(notes))
    for warning in corpus.overlap_warnings:
        log.warning(warning)
    return corpus


def _check_splits(chosen: Mapping[str, Sequence[Context]], cfg: CorpusConfig, notes: Sequence[str]) -> None:
    """Raises CorpusError where a split that is fitted or measured on got no document."""
    for split in ("fit", "eval"):
        if not chosen[split]:
            left_out = "".join(f". {note}" for note in notes)
            raise CorpusError(
                f"the {split} split holds no document of at least {MIN_TOKENS} tokens: give more documents,"
                f" raise its share in corpus.split={cfg.split}, or, of conversations, raise"
                f" corpus.context_len={cfg.context_len}{left_out}"
            )


def _budgets(name: str, unrelated: int, cfg: CorpusConfig, adapt_tokens: int) -> dict[str, int]:
    """Split → tokens of the corpus `name`, beside `unrelated` others that are no domain."""
    share = (
        1 - (cfg.unrelated_share if unrelated else 0.0) if name == DOMAIN else cfg.unrelated_share / unrelated
    )
    return {
        "fit": round(share * cfg.fit_tokens),
        "eval": round(share * cfg.eval_tokens),
        "adapt": adapt_tokens if name == DOMAIN else 0,
    }


def _overlap(texts: dict[str, dict[str, bytes]], trained_on: set[bytes]) -> dict[str, tuple[str, ...]]:
    """Split → its documents whose text adapters are, or were, trained on. `texts`: split → document →
    fingerprint."""
    trained = trained_on | set(texts["adapt"].values())
    shared = {
        split: tuple(sorted(d for d, text in texts[split].items() if text in trained))
        for split in ("fit", "eval")
    }
    return {split: documents for split, documents in shared.items() if documents}
