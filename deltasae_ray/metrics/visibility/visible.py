"""Can the dictionary made for the base model see a change? Decided latent by latent, without a model and
without Ray."""

from collections.abc import Sequence

from deltasae_ray.metrics.arrays import Matrix
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.visibility.answer import LatentVisibility, Visibility
from deltasae_ray.metrics.visibility.deciding import Dictionaries, decided
from deltasae_ray.metrics.visibility.rows import PerRow, Rows, check_dictionaries

__all__ = ["LatentVisibility", "Visibility", "visibility"]


def visibility(  # noqa: PLR0913 - public: a figure's settings, by keyword
    deltas: Matrix,
    base: Matrix,
    dictionary: DictionaryLike,
    reference: DictionaryLike,
    *,
    base_dictionaries: Sequence[DictionaryLike],
    second: DictionaryLike | Sequence[DictionaryLike],
    training: Matrix,
    training_base: Matrix,
    doc_ids: PerRow,
    token_ids: PerRow | None = None,
    positions: PerRow | None = None,
    corpora: PerRow | None = None,
    seed: int = 0,
) -> Visibility:
    """Decides which latents of a delta dictionary the reference can see, and what that says of the change.

    Args:
        deltas: evaluation deltas, float32 [token, d_model].
        base: base activations on the same rows.
        dictionary: fitted to the training deltas.
        reference: the base model's dictionary that is held against it.
        base_dictionaries: three or more others, fitted to base activations: their latents are visible by
            construction, and say what a visible latent scores.
        second: delta dictionaries of other seeds; a latent is judged if each of them has it too.
        training: training deltas.
        training_base: base activations on the training rows.
        doc_ids: document of each evaluation row.
        token_ids: token of each evaluation row; without it, whether latents fire with the reference is
            undefined.
        positions: place of each evaluation row in its document.
        corpora: text that each evaluation row is from; structure is then looked for within each.

    Raises:
        GeometryError: matrices that do not fit each other, a bare decoder, no base dictionary.
        PrecisionError: NaN or infinity.
    """
    rows = Rows.of(deltas, base, training, training_base, doc_ids, token_ids, positions, corpora)
    others = tuple(second) if isinstance(second, Sequence) else (second,)
    check_dictionaries(rows.width, dictionary, reference, base_dictionaries, others)
    return decided(rows, Dictionaries(dictionary, others, reference, tuple(base_dictionaries)), seed)
