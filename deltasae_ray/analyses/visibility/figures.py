"""What a study asks of one dictionary of deltas, at one layer: which latents the reference can see, in all
texts together and in each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from deltasae_ray.analyses.visibility.count_figures import Counts
from deltasae_ray.analyses.visibility.of_random_figures import of_random
from deltasae_ray.metrics.arrays import matrix
from deltasae_ray.metrics.coding.dictionary_coding import spread
from deltasae_ray.metrics.coding.missing_share import matched_codings, missing_share
from deltasae_ray.metrics.inputs import DictionaryLike, LayerRows, Settings, living_energy, living_rows
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.visibility.answer import Visibility
from deltasae_ray.metrics.visibility.base_side import BaseSide
from deltasae_ray.metrics.visibility.deciding import Dictionaries, decided
from deltasae_ray.metrics.visibility.latents import MIN_FIRINGS
from deltasae_ray.metrics.visibility.pooled import compare_pooled
from deltasae_ray.metrics.visibility.rows import Rows, check_dictionaries

POOLED_TOKENS = 1024
"""Evaluation tokens that are coded for the pooled missing share: its pool makes a token cost five times as
much."""
FIRST_TOKENS, ENOUGH = 1024, 0.15
"""Tokens that are coded first for M of a text; more, where its interval is longer than `ENOUGH`."""
FEWEST_ROWS = 200
"""Training rows of a text, below which it has no mean and no covariance of its own."""
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class CellRows(LayerRows):
    """Rows of one source at one layer, with what is known of each; rows at position 0 are already dropped."""

    tokens: np.ndarray
    """Token of each evaluation row."""
    positions: np.ndarray
    """Place of each evaluation row in its context."""
    corpora: np.ndarray
    """Text that each evaluation row is from."""
    fit_corpora: np.ndarray
    """Text that each training row is from."""
    texts: tuple[str, ...]
    """Names of the texts; that which the adapter was trained on first."""

    @cached_property
    def delta_moments(self) -> Moments:
        """Of the training deltas."""
        return Moments.of(self.delta_fit)

    @property
    def several(self) -> np.ndarray | None:
        """The text of each evaluation row; None where there is one."""
        return self.corpora if len(self.texts) > 1 else None


@dataclass(frozen=True, eq=False)
class CellDictionaries:
    """The dictionaries that one answer takes."""

    own: DictionaryLike
    """Of the deltas."""
    others: Sequence[DictionaryLike]
    """The same recipe on the same deltas, from other seeds."""
    reference: DictionaryLike
    bases: Sequence[DictionaryLike]
    """Of base activations, held out from the reference."""


@dataclass(frozen=True)
class TextFinding:
    """What one text by itself says of the latents."""

    corpus: str
    counts: Counts
    """Of the latents that fire in it."""
    missing: Measure
    """M; mean, flips and resamples are of this text alone."""


@dataclass(frozen=True)
class CellVisibility:
    """The answer of one dictionary."""

    answer: Visibility
    texts: tuple[TextFinding, ...] = ()
    """Each text by itself."""
    pooled: Measure = undefined("the pooled missing share was not measured")
    """M_p of all texts."""
    planted: Measure = undefined("the positive control was not measured")
    """M of a change made of latents of a held-out base dictionary: the least that this reference can miss."""
    random: dict[str, Measure] = field(default_factory=dict)
    """Figure → what it is of a random adapter, where this is one."""

    @property
    def counts(self) -> Counts:
        return Counts.of(self.answer.latents, self.answer.draws)

    @property
    def narrow(self) -> bool:
        """Whether directions were counted, all that a narrow change has, in the place of latents."""
        return self.answer.judged_on == "directions"

    def not_visible_share(self, comparisons: int = 1) -> Measure:
        """f with its interval; that of counted directions holds whatever else is asked."""
        return self.answer.share if self.narrow else self.counts.not_visible_share(comparisons)

    @classmethod
    def undefined(cls, reason: str) -> "CellVisibility":
        """An answer that could not be had."""
        return cls(Visibility("INCONCLUSIVE", undefined(reason), (0.0, 1.0), (), (reason,)))


Asked = Literal["all", "latents", "random"]
"""What is asked of a cell: latents and missing shares; latents alone; or, of a random adapter, which are not
visible, and the figures that trained ones are held against."""


def judge_cell(
    rows: CellRows,
    cell: CellDictionaries,
    settings: Settings,
    asked: Asked = "all",
    code_tokens: int = FIRST_TOKENS,
    side: BaseSide | None = None,
) -> CellVisibility:
    """Decides which latents are visible, in all texts and in each, and measures both missing shares.

    Args:
        code_tokens: most tokens of a text that are coded for its M.
        side: `base_side` of these rows and dictionaries, where several changes share it.

    Raises:
        GeometryError: dictionaries that do not fit the rows.
    """
    if rows.silent:
        return CellVisibility.undefined("the deltas are zero: the adapter changes nothing here")
    with torch.no_grad():
        answer = _decided(rows, cell, settings, asked, side)
        if asked == "random":
            return CellVisibility(
                answer, random=of_random(rows, rows.delta_moments, cell.own, cell.reference, settings)
            )
        counts = _by_text(rows, cell, answer)
        if asked == "latents":
            left = undefined("it is measured of the largest dictionaries alone")
            return CellVisibility(
                answer, tuple(TextFinding(t, c, left) for t, c in counts.items()), left, left
            )
        texts = tuple(
            TextFinding(t, c, _missing(rows, cell, t, settings, code_tokens)) for t, c in counts.items()
        )
        pooled = _pooled(rows, cell, settings)
        planted = _planted(rows, cell, settings)
    return CellVisibility(answer, texts, pooled, planted)


def base_side(rows: CellRows, cell: CellDictionaries, settings: Settings) -> BaseSide:
    """What every change at this layer asks of the base activations and their dictionaries."""
    training, evaluation = matrix(rows.base_fit, "base_fit").cpu(), matrix(rows.base_eval, "base_eval").cpu()
    return BaseSide(training, evaluation, rows.several, cell.reference, tuple(cell.bases), settings.seed)


def _decided(
    rows: CellRows, cell: CellDictionaries, settings: Settings, asked: Asked, side: BaseSide | None
) -> Visibility:
    """Decides which latents the reference can see; where they fire is not asked of random adapters."""
    random = asked == "random"
    given = Rows.of(
        rows.delta_eval,
        rows.base_eval,
        rows.delta_fit,
        rows.base_fit,
        rows.eval_docs,
        None if random else rows.tokens,
        None if random else rows.positions,
        rows.several,
    )
    dictionaries = Dictionaries(cell.own, tuple(cell.others), cell.reference, tuple(cell.bases))
    check_dictionaries(
        given.width, dictionaries.delta, dictionaries.reference, dictionaries.bases, dictionaries.seconds
    )
    given = replace(given, training_moments=rows.delta_moments)
    return decided(given, dictionaries, settings.seed, side)


def _pooled(rows: CellRows, cell: CellDictionaries, settings: Settings) -> Measure:
    """M_p of all texts."""
    pair = matched_codings(
        rows.delta_eval,
        (living_rows(cell.own), living_rows(cell.reference), None),
        rows.delta_fit,
        rows.eval_docs,
        replace(settings, code_tokens=min(POOLED_TOKENS, settings.code_tokens)),
        rows.delta_moments,
    )
    return pair if isinstance(pair, Measure) else compare_pooled(pair, seed=settings.seed)


def _planted(rows: CellRows, cell: CellDictionaries, settings: Settings) -> Measure:
    """Makes a change of the latents of the first base dictionary, with the codes of the real one, and
    measures M of it: sparsity, energies and what fires together are the change's own.

    Latents are paired by energy, the loudest with the loudest.
    """
    base, own = cell.bases[0], cell.own
    rows_of, order = living_rows(base), torch.argsort(living_energy(base), descending=True)
    loud = torch.argsort(own.energy.detach().cpu(), descending=True)[: len(rows_of)]
    atoms = torch.nn.functional.normalize(rows_of[order.to(rows_of.device)][: len(loud)], dim=1).cpu()
    length = own.W_dec.detach().float().cpu().norm(dim=1)[loud]

    def rebuilt(deltas: np.ndarray) -> np.ndarray:
        blocks = torch.from_numpy(np.ascontiguousarray(deltas)).float().split(_ROWS)
        return torch.cat([own.encode(x).cpu()[:, loud] * length @ atoms for x in blocks]).numpy()

    coded = spread(len(rows.delta_fit), max(settings.code_tokens, 8 * rows.delta_fit.shape[1]))
    return missing_share(
        rebuilt(rows.delta_eval),
        atoms,
        living_rows(cell.reference),
        settings.k,
        doc_ids=rows.eval_docs,
        training=rebuilt(rows.delta_fit[coded]),
        draws=settings.null_draws,
        bootstrap=settings.bootstrap,
        max_tokens=min(POOLED_TOKENS, settings.code_tokens),
        seed=settings.seed,
    )


def _by_text(rows: CellRows, cell: CellDictionaries, answer: Visibility) -> dict[str, Counts]:
    """Text → counts of the latents that fire in it."""
    fires, whole = _firings(cell.own, rows), Counts.of(answer.latents, answer.draws)
    return {
        text: Counts.of([x for x in answer.latents if fires[text][x.index] >= MIN_FIRINGS]).within(whole)
        for text in rows.texts
    }


def _firings(dictionary: DictionaryLike, rows: CellRows) -> dict[str, np.ndarray]:
    """Text → firings of every latent on its evaluation rows."""
    total = {text: np.zeros(len(dictionary.W_dec), dtype=int) for text in rows.texts}
    for text, count in total.items():
        here = np.flatnonzero(rows.corpora == text)
        for start in range(0, len(here), _ROWS):
            x = torch.from_numpy(np.ascontiguousarray(rows.delta_eval[here[start : start + _ROWS]])).float()
            count += (dictionary.encode(x) > 0).sum(0).cpu().numpy()
    return total


def _missing(rows: CellRows, cell: CellDictionaries, text: str, settings: Settings, most: int) -> Measure:
    """M of one text, held against flips of its own, by as many tokens as its precision takes."""
    share = _coded(rows, cell, text, settings, min(FIRST_TOKENS, most))
    if share.ci is None or (length := share.ci[1] - share.ci[0]) <= ENOUGH:
        return share
    tokens = min(most, int(FIRST_TOKENS * (length / ENOUGH) ** 2))
    return _coded(rows, cell, text, settings, tokens) if tokens > FIRST_TOKENS else share


def _coded(rows: CellRows, cell: CellDictionaries, text: str, settings: Settings, tokens: int) -> Measure:
    here, there = rows.corpora == text, rows.fit_corpora == text
    if there.sum() < FEWEST_ROWS:
        return undefined(
            f"{there.sum()} training rows of {text}, {FEWEST_ROWS} are needed: give it more of the text"
        )
    share = missing_share(
        rows.delta_eval[here],
        living_rows(cell.own),
        living_rows(cell.reference),
        settings.k,
        doc_ids=np.asarray(rows.eval_docs)[here],
        training=rows.delta_fit[there],
        draws=settings.null_draws,
        bootstrap=settings.bootstrap,
        max_tokens=tokens,
        seed=settings.seed,
    )
    return share.because("ceiling", "the ceiling is measured of all texts together")
