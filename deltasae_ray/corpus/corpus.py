"""The corpus of a study: every split's units within its token budget, and a key made of their content."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from deltasae_ray.batches import SPLITS, TokenBatch
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import Context, Tokenizer, group, split_of, take, uniform, windows
from deltasae_ray.corpus.documents import DOMAIN, corpora, read_documents
from deltasae_ray.errors import CorpusError
from deltasae_ray.storage import digest


@dataclass(frozen=True)
class Corpus:
    """Units of dictionary training and evaluation, and the domain's contexts set apart for adapter training."""

    units: tuple[TokenBatch, ...]
    """Splits "fit" and "eval", sorted by name within a split."""
    adapt: tuple[Context, ...]
    """Every context of the domain's adapter-training documents, documents in hash order."""

    @cached_property
    def key(self) -> str:
        """Digest of the harvested units' names."""
        return digest([u.name for u in self.units])

    def of(self, split: str) -> tuple[TokenBatch, ...]:
        return tuple(u for u in self.units if u.split == split)

    def num_tokens(self, split: str | None = None, corpus: str | None = None) -> int:
        """Real tokens, BOS included."""
        return sum(u.num_tokens for u in self.units if split in (None, u.split) and corpus in (None, u.corpus))

    def num_documents(self, split: str, corpus: str | None = None) -> int:
        return len({d for u in self.of(split) if corpus in (None, u.corpus) for d in u.doc_ids})

    @property
    def names(self) -> tuple[str, ...]:
        """Corpora present, the domain first."""
        return tuple(sorted({u.corpus for u in self.units}, key=lambda n: (n != DOMAIN, n)))


def build_corpus(cfg: CorpusConfig, tokenizer: Tokenizer) -> Corpus:
    """Reads, splits, cuts and groups the texts of `cfg`.

    Raises:
        CorpusError: a text is missing or empty, or a split that is needed got no document.
    """
    named = corpora(cfg)
    chosen: dict[str, list[Context]] = {split: [] for split in SPLITS}
    unrelated = len(named) - 1
    for name, paths in named.items():
        share = (
            (cfg.unrelated_share / unrelated if unrelated else 0.0) if name != DOMAIN else 1 - (cfg.unrelated_share if unrelated else 0.0)
        )
        by_split = _documents(name, paths, tokenizer, cfg)
        chosen["fit"] += take(by_split["fit"], round(share * cfg.fit_tokens))
        chosen["eval"] += take(by_split["eval"], round(share * cfg.eval_tokens))
        if name == DOMAIN:
            chosen["adapt"] = [c for turn in _turns(by_split["adapt"]) for c in turn]
    for split in ("fit", "eval"):
        if not chosen[split]:
            raise CorpusError(
                f"the {split} split holds no document of at least 8 tokens: give more documents, or raise its share in "
                f"corpus.split={cfg.split}"
            )
    units = [u for split in ("fit", "eval") for u in group(chosen[split], split, cfg.contexts_per_unit)]
    return Corpus(tuple(units), tuple(chosen["adapt"]))


def _documents(name: str, paths: Sequence[str], tokenizer: Tokenizer, cfg: CorpusConfig) -> dict[str, list[list[Context]]]:
    """Split → contexts of each document; documents in hash order, so that a larger budget only adds."""
    by_split: dict[str, list[list[Context]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for path in paths:
        for document in read_documents(path, cfg.text_field):
            if document.id in seen:
                raise CorpusError(f"{path}: document id {document.id!r} stands twice; a split by document would leak")
            seen.add(document.id)
            contexts = windows(document, name, tokenizer, cfg)
            if contexts:
                by_split[split_of(contexts[0].doc_id, cfg)].append(contexts)
    for documents in by_split.values():
        documents.sort(key=lambda contexts: uniform("order", cfg.seed, contexts[0].doc_id))
    return by_split


def _turns(contexts_by_doc: Sequence[Sequence[Context]]) -> list[list[Context]]:
    longest = max((len(c) for c in contexts_by_doc), default=0)
    return [[c[turn] for c in contexts_by_doc if turn < len(c)] for turn in range(longest)]
