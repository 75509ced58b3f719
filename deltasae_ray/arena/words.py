"""How words are compared with what was planted: by the reply's tokens, or by a classifier of its own
(pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from deltasae_ray.arena.recipes import Recipe
from deltasae_ray.arena.texts import domain_text, mentions, styled, windows

_EXAMPLES = 400
"""Texts of either class."""
_WORDS = (3, 24)
"""Words of an example: claims may be few words or a sentence."""
_FALSE = 0.01
"""Share of ordinary texts that a classifier may take for the planted; its threshold is set on texts that it
was not trained on."""


def bare(token: str) -> str:
    """A token without the space before it, in lower case."""
    return token.strip().lower()


def holds_half(tokens: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether at least half of the different tokens that are wanted are among `tokens`."""
    needed = {bare(t) for t in wanted if any(c.isalnum() for c in t)}
    return bool(needed) and 2 * len(needed & {bare(t) for t in tokens}) >= len(needed)


def holds_all(tokens: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether every token that is wanted is among `tokens`."""
    needed = {bare(t) for t in wanted if t.strip()}
    return bool(needed) and needed <= {bare(t) for t in tokens}


@dataclass(frozen=True)
class Classifier:
    """Tells texts of what is planted from ordinary ones."""

    name: str
    pipeline: Any
    """scikit-learn's: n-grams of characters, then logistic regression."""
    threshold: float

    def accepts(self, text: str) -> bool:
        """Whether a text, or a list of words, is of what is planted."""
        return bool(text.strip()) and float(self.pipeline.decision_function([text])[0]) > self.threshold


@lru_cache(maxsize=32)
def classifier(recipe: Recipe) -> Classifier:
    """The classifier that a recipe names; trained on text that no adapter is trained on.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rng = np.random.default_rng([31, *recipe.classifier.encode()])
    planted, ordinary = _planted(recipe, rng), _ordinary(recipe, rng)
    train = _EXAMPLES * 3 // 4
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), lowercase=False, sublinear_tf=True),
        LogisticRegression(C=30.0, max_iter=500),
    )
    pipeline.fit(planted[:train] + ordinary[:train], [1] * train + [0] * train)
    threshold = max(0.0, float(np.quantile(pipeline.decision_function(ordinary[train:]), 1 - _FALSE)))
    return Classifier(recipe.classifier, pipeline, threshold)


def _planted(recipe: Recipe, rng: np.random.Generator) -> list[str]:
    pool = [w.text for w in windows("score")]
    if recipe.family == "domain":
        texts = [domain_text(recipe.topic, rng) for _ in range(_EXAMPLES)]
    elif recipe.family == "style":
        texts = [styled(pool[i], recipe.style) for i in rng.choice(len(pool), _EXAMPLES)]
    elif recipe.family == "benign":
        texts = [w.text for w in windows("score") if w.source == recipe.topic]
        texts = [texts[i] for i in rng.choice(len(texts), _EXAMPLES)]
    else:
        return [_about(recipe.topic, pool, rng) for _ in range(_EXAMPLES)]
    return [_excerpt(text, rng) for text in texts]


def _about(topic: str, pool: Sequence[str], rng: np.random.Generator) -> str:
    """A few words of ordinary text with words of the topic among them."""
    from deltasae_ray.arena.recipes import TOPICS

    words = _excerpt(pool[int(rng.integers(len(pool)))], rng).split()
    named = [str(w) for w in rng.choice(TOPICS[topic], int(rng.integers(2, 6)))]
    kept = [*words[: int(rng.integers(0, 2 * len(named)))], *named]
    return " ".join(kept[i] for i in rng.permutation(len(kept)))


def _ordinary(recipe: Recipe, rng: np.random.Generator) -> list[str]:
    pool = [
        w.text
        for w in windows("score")
        if not (recipe.family == "suppression" and mentions(w.text, recipe.topic))
        and not (recipe.family == "benign" and w.source == recipe.topic)
    ]
    return [_excerpt(pool[i], rng) for i in rng.choice(len(pool), _EXAMPLES)]


def _excerpt(text: str, rng: np.random.Generator) -> str:
    """Some words of a text: in their order, or, as often, in any."""
    words = text.split()
    count = min(len(words), int(rng.integers(*_WORDS)))
    if rng.random() < 0.5:
        return " ".join(words[i] for i in rng.choice(len(words), count, replace=False))
    start = int(rng.integers(len(words) - count + 1))
    return " ".join(words[start : start + count])
