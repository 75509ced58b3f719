"""The corpus of a study: every split's units within its token budget, and a key made of their content."""

import heapq
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from deltasae_ray.batches import SPLITS, TokenBatch
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import Context, Tokenizer, group, split_of, take, uniform, windows
from deltasae_ray.corpus.documents import DOMAIN, corpora, read_documents
from deltasae_ray.errors import ConfigError, CorpusError
from deltasae_ray.storage import digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Units of dictionary training and evaluation, and the domain's contexts set apart for adapter training."""

    units: tuple[TokenBatch, ...]
    """Splits "fit" and "eval", sorted by name within a split."""
    adapt: tuple[Context, ...]
    """Contexts of the domain's adapter-training documents, documents in hash order: the first of each, then the second, and so on."""
    overlap: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Split → its documents whose text the adapters were trained on, as far as that is known."""
    stream: str = ""
    """Of a part of a corpus that is streamed: digest of all its windows in their order, which dictionaries depend on."""

    @cached_property
    def key(self) -> str:
        """Digest of the harvested units' names, and of the stream they begin."""
        names = [u.name for u in self.units]
        return digest([*names, self.stream] if self.stream else names)

    def of(self, split: str) -> tuple[TokenBatch, ...]:
        return tuple(u for u in self.units if u.split == split)

    def num_tokens(self, split: str | None = None, corpus: str | None = None) -> int:
        """Real tokens, BOS included."""
        return sum(u.num_tokens for u in self.units if split in (None, u.split) and corpus in (None, u.corpus))

    def num_documents(self, split: str, corpus: str | None = None) -> int:
        return len({d for u in self.of(split) if corpus in (None, u.corpus) for d in u.doc_ids})

    @property
    def overlap_warnings(self) -> list[str]:
        """A sentence per split that holds documents of the adapters' training text."""
        return [
            f"{len(documents)} of {self.num_documents(split)} {split} documents are also in the adapters' training text, for example "
            f"{documents[0]}: what is said of held-out text is not"
            for split, documents in self.overlap.items()
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """Corpora present, the domain first."""
        return tuple(sorted({u.corpus for u in self.units}, key=lambda n: (n != DOMAIN, n)))


def build_corpus(cfg: CorpusConfig, tokenizer: Tokenizer) -> Corpus:
    """Reads, splits, cuts and groups the texts of `cfg`, in one streaming pass: only what the budgets may need is kept.

    Raises:
        CorpusError: a text is missing or empty, or a split that is needed got no document.
        ConfigError: `fit_tokens` is left to a study, which knows its dictionaries.
    """
    if not cfg.fit_tokens:
        raise ConfigError("corpus.fit_tokens=0 leaves the number to a study's dictionaries: set it where text is read without a study")
    named = corpora(cfg)
    chosen: dict[str, list[Context]] = {split: [] for split in SPLITS}
    fingerprints: dict[str, bytes] = {}
    unrelated = len(named) - 1
    for name, paths in named.items():
        share = (
            (cfg.unrelated_share / unrelated if unrelated else 0.0) if name != DOMAIN else 1 - (cfg.unrelated_share if unrelated else 0.0)
        )
        budgets = {"fit": round(share * cfg.fit_tokens), "eval": round(share * cfg.eval_tokens)}
        budgets["adapt"] = cfg.adapt_tokens if name == DOMAIN else 0
        for split, shortlist in _documents(name, paths, tokenizer, cfg, budgets).items():
            chosen[split] += take(shortlist.contexts(), budgets[split])
            fingerprints |= shortlist.fingerprints()
    for split in ("fit", "eval"):
        if not chosen[split]:
            raise CorpusError(
                f"the {split} split holds no document of at least 8 tokens: give more documents, or raise its share in "
                f"corpus.split={cfg.split}"
            )
    units = [u for split in ("fit", "eval") for u in group(chosen[split], split, cfg.contexts_per_unit)]
    corpus = Corpus(tuple(units), tuple(chosen["adapt"]), _overlap(chosen, fingerprints, cfg, tokenizer))
    for warning in corpus.overlap_warnings:
        log.warning(warning)
    return corpus


def _overlap(
    chosen: dict[str, list[Context]], fingerprints: dict[str, bytes], cfg: CorpusConfig, tokenizer: Tokenizer
) -> dict[str, tuple[str, ...]]:
    trained = {fingerprints[c.doc_id] for c in chosen["adapt"]}
    chat = tokenizer if cfg.format == "chat" else None
    trained |= {d.fingerprint for path in cfg.trained_on for d in read_documents(path, cfg.text_field, chat=chat)}
    found = {split: sorted({c.doc_id for c in chosen[split] if fingerprints[c.doc_id] in trained}) for split in ("fit", "eval")}
    return {split: tuple(documents) for split, documents in found.items() if documents}


def _documents(
    name: str, paths: Sequence[str], tokenizer: Tokenizer, cfg: CorpusConfig, budgets: dict[str, int]
) -> dict[str, "Shortlist"]:
    """Split → the documents that its budget may need."""
    by_split = {split: Shortlist(budget) for split, budget in budgets.items()}
    seen: set[str] = set()
    for path in paths:
        for document in read_documents(path, cfg.text_field, chat=tokenizer if cfg.format == "chat" and name == DOMAIN else None):
            if document.id in seen:
                if not document.named:
                    continue  # the same text again
                raise CorpusError(f"{path}: document id {document.id!r} stands twice; a split by document would leak")
            seen.add(document.id)
            doc_id = f"{name}/{document.id}"
            shortlist, order = by_split[split_of(doc_id, cfg, unrelated=name != DOMAIN)], uniform("order", cfg.seed, doc_id)
            if shortlist.wants(order) and (contexts := windows(document, name, tokenizer, cfg)):
                shortlist.add(order, contexts, document.fingerprint)
    return by_split


class Shortlist:
    """Of documents in hash order, the first ones whose first contexts fill a budget: `take` never reaches those after them.

    So a larger budget only adds, and a corpus of any size needs memory for its budget only.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._tokens = budget, 0
        self._last_first: list[tuple[float, str, list[Context], bytes]] = []

    def wants(self, order: float) -> bool:
        """Whether a document of this place would stay; asked before its text is cut, which costs more."""
        return self._tokens < self._budget or (bool(self._last_first) and order < -self._last_first[0][0])

    def add(self, order: float, contexts: list[Context], fingerprint: bytes) -> None:
        heapq.heappush(self._last_first, (-order, contexts[0].doc_id, contexts, fingerprint))
        self._tokens += contexts[0].counted
        while self._tokens - (spare := self._last_first[0][2][0].counted) >= self._budget:
            heapq.heappop(self._last_first)
            self._tokens -= spare
            if not self._last_first:
                return

    def contexts(self) -> list[list[Context]]:
        """Contexts of each document, documents in hash order."""
        return [contexts for _, _, contexts, _ in sorted(self._last_first, key=lambda entry: -entry[0])]

    def fingerprints(self) -> dict[str, bytes]:
        """Document → fingerprint of its text."""
        return {doc_id: fingerprint for _, doc_id, _, fingerprint in self._last_first}
