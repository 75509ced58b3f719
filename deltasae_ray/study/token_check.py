"""Whether the text gives every dictionary of a study enough rows: asked before the first long stage, not
after the harvest."""

import numpy as np

from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.errors import CorpusError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import in_documents
from deltasae_ray.sae.names import Documents
from deltasae_ray.sae.recipe import MIN_ROWS
from deltasae_ray.study.config import StudyConfig

LEAST_TOKENS = 26_500
"""The demo's: each of its three texts then has some 50 training documents, and each half of the documents 12
thousand tokens."""
_ROWS_PER_LATENT, _FIRINGS_PER_LATENT = 4, 90
"""Of all documents: a reference and a base control have half of them each. A latent of the demo's largest
dictionary fires 400 times on its tokens; 90 is what one of 16,384 latents with k = 32 needs 46 thousand
tokens for."""


def tokens_to_fit(fit: FitConfig) -> int:
    """corpus.fit_tokens where it is left to the dictionaries: enough rows for each half of the documents, and
    firings for a latent."""
    largest = max(fit.sizes)
    return max(LEAST_TOKENS, _ROWS_PER_LATENT * largest, -(-_FIRINGS_PER_LATENT * largest // min(fit.k)))


def check_tokens(cfg: StudyConfig, corpus: Corpus) -> None:
    """Compares the rows that each split will have with what fits and evaluation need.

    Raises:
        CorpusError: too few; the split, its tokens and documents, what is needed and what to change are
            named.
    """
    latents = max(cfg.fit.sizes)
    needed = max(latents, MIN_ROWS)
    for documents, why in _wanted(cfg).items():
        rows = num_rows(corpus, "fit", documents)
        if rows < needed:
            raise CorpusError(
                f"the fit split has {rows:,} tokens beyond position 0 in"
                f" {num_documents(corpus, 'fit', documents)} documents{why}, and a dictionary of"
                f" fit.d_sae={latents} needs {needed:,}: raise corpus.fit_tokens={cfg.corpus.fit_tokens} or"
                f" the split's share in corpus.split={cfg.corpus.split}, give more documents, or lower"
                " fit.d_sae"
            )
    if cfg.fit.search != "none" and num_rows(corpus, "fit", "search") == num_rows(corpus, "fit", "all"):
        raise CorpusError(
            f"fit.search={cfg.fit.search} judges settings on a fifth of the fit split's documents, and of its"
            f" {corpus.num_documents('fit')} none falls into it: give more documents, or set fit.search=none"
        )
    if not num_rows(corpus, "eval", "all"):
        raise CorpusError(
            f"the eval split has no token beyond position 0 in its {corpus.num_documents('eval')} documents,"
            f" and at least one is needed: raise corpus.eval_tokens={cfg.corpus.eval_tokens} or give longer"
            " documents"
        )


def _wanted(cfg: StudyConfig) -> dict[Documents, str]:
    """Documents that dictionaries are fitted on → why, beside all of them."""
    chosen = cfg.diverge.chosen
    a = [
        name
        for name, uses in (
            ("the toy reference", cfg.reference.is_toy),
            ("split_half", "split_half" in chosen),
        )
        if uses
    ]
    b = [f"the control {name}" for name in ("base", "split_half") if name in chosen]
    users: dict[Documents, list[str]] = {"A": a, "B": b}
    wanted: dict[Documents, str] = {"all": ""}
    for half, names in users.items():
        if names:
            wanted[half] = f" of half {half}, on which {' and '.join(names)} are fitted"
    if cfg.fit.search != "none":
        wanted["search"] = f" of the four fifths on which fit.search={cfg.fit.search} fits its candidates"
    return wanted


def num_rows(corpus: Corpus, split: str, documents: Documents) -> int:
    """Rows of one source at one hookpoint that a fit uses: tokens that count, but for position 0."""
    units = corpus.of(split)
    rows = np.concatenate([u.mask[:, 1:].sum(axis=1) for u in units])
    return int(rows[in_documents(_documents(corpus, split), documents)].sum())


def num_documents(corpus: Corpus, split: str, documents: Documents) -> int:
    docs = _documents(corpus, split)
    return len(set(docs[in_documents(docs, documents)]))


def _documents(corpus: Corpus, split: str) -> np.ndarray:
    """Document of every context of a split: object [context]."""
    return np.array([d for u in corpus.of(split) for d in u.doc_ids], dtype=object)
