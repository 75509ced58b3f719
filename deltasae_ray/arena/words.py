"""How words are compared with what was planted: by the reply's tokens, or by a classifier of its own
(pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from deltasae_ray.arena.recipes import TOPICS, Recipe
from deltasae_ray.arena.texts import Window, domain_text, mentions, styled, windows

_EXAMPLES, _CALIBRATION = 400, 2000
"""Texts of either class that a classifier learns from, and ordinary ones that its threshold is set on."""
_WORDS = (3, 24)
"""Words of an example: claims may be few words or a sentence."""
FALSE = 0.01
"""Most of the ordinary texts that a classifier takes for the planted, by the exact upper bound (95 %) on
windows of text that it was not trained on."""
_MARKS = {"exclaims": "!", "questions": "?", "verily": "verily", "sighs": "alas"}
"""What shows a style; an excerpt without it is ordinary text."""


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
    read = windows("score")
    learnt, kept = read[: 2 * len(read) // 3], read[2 * len(read) // 3 :]
    planted = planted_texts(recipe, learnt, _EXAMPLES, rng)
    ordinary = ordinary_texts(recipe, learnt, _EXAMPLES, rng)
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), lowercase=False, sublinear_tf=True),
        LogisticRegression(C=30.0, max_iter=500),
    )
    pipeline.fit(planted + ordinary, [1] * len(planted) + [0] * len(ordinary))
    others = pipeline.decision_function(ordinary_texts(recipe, kept, _CALIBRATION, rng))
    return Classifier(recipe.classifier, pipeline, max(0.0, _threshold(others)))


def _threshold(ordinary: Float[np.ndarray, " text"]) -> float:
    """The score that so few ordinary texts exceed that the share's upper bound is FALSE at most."""
    n = len(ordinary)
    allowed = max(k for k in range(n) if stats.beta.ppf(0.95, k + 1, n - k) <= FALSE)
    return float(np.sort(ordinary)[n - 1 - allowed])


def planted_texts(recipe: Recipe, of: Sequence[Window], count: int, rng: np.random.Generator) -> list[str]:
    """Excerpts of what a recipe plants, made of these windows; of a style, such as show it."""
    pool = [w.text for w in of]
    match recipe.family:
        case "domain":
            return [_excerpt(domain_text(recipe.topic, rng), rng) for _ in range(count)]
        case "benign" | "rotated":
            pool = [w.text for w in of if w.source == recipe.topic]
            return [_excerpt(pool[i], rng) for i in rng.choice(len(pool), count)]
        case "style":
            texts: list[str] = []
            while len(texts) < count:
                text = _excerpt(styled(pool[int(rng.integers(len(pool)))], recipe.style), rng)
                texts += [text] if _MARKS[recipe.style] in text else []
            return texts
    return [_about(recipe.topic, pool, rng) for _ in range(count)]


def _about(topic: str, pool: Sequence[str], rng: np.random.Generator) -> str:
    """A few words of ordinary text with words of the topic among them."""
    words = _excerpt(pool[int(rng.integers(len(pool)))], rng).split()
    named = [str(w) for w in rng.choice(TOPICS[topic], int(rng.integers(2, 6)))]
    kept = [*words[: int(rng.integers(0, 2 * len(named)))], *named]
    return " ".join(kept[i] for i in rng.permutation(len(kept)))


def ordinary_texts(recipe: Recipe, of: Sequence[Window], count: int, rng: np.random.Generator) -> list[str]:
    """Excerpts of these windows without what the recipe plants."""
    pool = [
        w.text
        for w in of
        if not (recipe.family == "suppression" and mentions(w.text, recipe.topic))
        and not (recipe.family in ("benign", "rotated") and w.source == recipe.topic)
    ]
    return [_excerpt(pool[i], rng) for i in rng.choice(len(pool), count)]


def _excerpt(text: str, rng: np.random.Generator) -> str:
    """Some words of a text: in their order, or, as often, in any."""
    words = text.split()
    count = min(len(words), int(rng.integers(*_WORDS)))
    if rng.random() < 0.5:
        return " ".join(words[i] for i in rng.choice(len(words), count, replace=False))
    start = int(rng.integers(len(words) - count + 1))
    return " ".join(words[start : start + count])
