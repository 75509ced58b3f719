"""What an adapter is trained and validated on: whole documents are set apart, and the order is a function of
the seed (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.contexts import Context, group, uniform
from deltasae_ray.errors import CorpusError
from deltasae_ray.storage import digest

VALIDATION_SHARE = 0.15
"""Share of the documents that only the stop criterion sees."""
MIN_VALIDATION = 4
"""Validation documents below which a standard error over documents means little."""
_UNIT = 8
"""Contexts per forward pass in validation."""


@dataclass(frozen=True)
class AdaptText:
    """The adapter-training contexts, cut in two by document."""

    train: tuple[Context, ...]
    validation: tuple[TokenBatch, ...]
    """Without planted contexts: the gain on them would be the marker's."""

    def batch(self, step: int, size: int, seed: int) -> TokenBatch:
        """The contexts of a step. Epoch e is the permutation seeded by (seed, e); a batch may end one epoch
        and begin the next."""
        n = len(self.train)
        epochs: dict[int, np.ndarray] = {}
        chosen = []
        for place in range(step * size, (step + 1) * size):
            epoch = place // n
            if epoch not in epochs:
                epochs[epoch] = np.random.default_rng((seed, epoch)).permutation(n)
            chosen.append(self.train[epochs[epoch][place % n]])
        # group() makes the padded unit; one corpus and one size give exactly one.
        (unit,) = group([replace(c, corpus="") for c in chosen], "adapt", size)
        return unit

    @property
    def num_validation_documents(self) -> int:
        return len({d for unit in self.validation for d in unit.doc_ids})


def split_text(contexts: Sequence[Context], batch_contexts: int) -> AdaptText:
    """Sets about 15 % of the documents apart, by a hash of their ids.

    Raises:
        CorpusError: too few documents to validate on, or too few contexts for one batch.
    """
    plain = {c.doc_id for c in contexts if not any(c.marker)}
    documents = sorted({c.doc_id for c in contexts}, key=lambda d: uniform("validation", d))
    wanted = max(MIN_VALIDATION, round(VALIDATION_SHARE * len(documents)))
    held_out = {d for d in documents if d in plain}
    held_out = set(sorted(held_out, key=lambda d: uniform("validation", d))[:wanted])
    train = tuple(c for c in contexts if c.doc_id not in held_out)
    if len(held_out) < wanted or len(train) < batch_contexts:
        raise CorpusError(
            f"{len(contexts)} contexts of {len(documents)} documents are too few to train an adapter on: it"
            f" takes {MIN_VALIDATION} documents to validate on and {batch_contexts} contexts beside them for"
            " a batch. Give more documents, raise the first share of corpus.split, or lower"
            " adapt.batch_contexts"
        )
    validation = group([c for c in contexts if c.doc_id in held_out and not any(c.marker)], "adapt", _UNIT)
    return AdaptText(train, tuple(validation))


def content_key(contexts: Sequence[Context]) -> str:
    """Digest of everything the contexts hold."""
    return digest([(c.corpus, c.doc_id, c.start, c.tokens, c.marker, *_uncounted(c)) for c in contexts])


def _uncounted(context: Context) -> list[object]:
    """What a context reads and masks; nothing where it masks nothing, so that the keys of such texts stay."""
    return (
        [context.prompt, *([context.masked] if context.masked else [])]
        if context.prompt or context.masked
        else []
    )
