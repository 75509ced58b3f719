"""What a decision is made of: deltas and base activations on the same rows, and dictionaries that can
encode."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.moments import Moments

PerRow = Sequence | np.ndarray


@dataclass(frozen=True, eq=False)
class Rows:
    """Evaluation and training rows, with what is known of each evaluation row."""

    deltas: Float[Tensor, "token d_model"]
    base: Float[Tensor, "token d_model"]
    training: Float[Tensor, "fit_token d_model"]
    training_base: Float[Tensor, "fit_token d_model"]
    doc_ids: np.ndarray
    token_ids: np.ndarray | None
    positions: np.ndarray | None
    corpora: np.ndarray | None
    training_moments: Moments | None = None
    """Of the training deltas, where they are known."""

    @classmethod
    def of(  # noqa: PLR0913 - the arrays of one formula
        cls,
        deltas: Matrix,
        base: Matrix,
        training: Matrix,
        training_base: Matrix,
        doc_ids: PerRow,
        token_ids: PerRow | None,
        positions: PerRow | None,
        corpora: PerRow | None,
    ) -> "Rows":
        """Checks that everything fits.

        Raises:
            GeometryError: another width or number of rows.
            PrecisionError: NaN or infinity.
        """
        given = {"deltas": deltas, "base": base, "training": training, "training_base": training_base}
        matrices = {name: matrix(x, name).cpu() for name, x in given.items()}
        for one, other in (("deltas", "base"), ("training", "training_base"), ("deltas", "training")):
            a, b = tuple(matrices[one].shape), tuple(matrices[other].shape)
            if a[1] != b[1] or (one, other) != ("deltas", "training") and a[0] != b[0]:
                raise GeometryError(f"{one} {a} and {other} {b}: give the same rows of the same width")
        known = {"doc_ids": doc_ids, "token_ids": token_ids, "positions": positions, "corpora": corpora}
        for name, x in known.items():
            if x is not None and len(x) != len(matrices["deltas"]):
                raise GeometryError(
                    f"{name} has {len(x)} entries for"
                    f" {len(matrices['deltas'])} rows of deltas: give one per row"
                )
        arrays = {name: None if x is None else np.asarray(x) for name, x in known.items()}
        for name, x in arrays.items():
            if x is not None and x.ndim != 1:
                raise GeometryError(f"{name} has shape {x.shape}: give one entry per row")
        for name in ("base", "training_base"):
            if not _varies(matrices[name]):
                raise GeometryError(f"{name} is the same on every row: base activations that vary are needed")
        return cls(**matrices, **arrays)  # pyright: ignore[reportArgumentType]

    @property
    def silent(self) -> bool:
        """Whether the deltas are the same on every row, so that there is nothing to judge."""
        return not (_varies(self.deltas) and _varies(self.training))

    @property
    def width(self) -> int:
        return self.deltas.shape[1]

    @cached_property
    def moments(self) -> Moments:
        """Moments of the training deltas."""
        return self.training_moments or Moments.of(self.training)


def _varies(x: Tensor) -> bool:
    return bool((x != x[0]).any())


def check_dictionaries(
    width: int,
    dictionary: DictionaryLike,
    reference: DictionaryLike,
    bases: Sequence[DictionaryLike],
    seconds: Sequence[DictionaryLike],
) -> None:
    """Checks that every dictionary can encode rows of this width, and that none is missing.

    Raises:
        GeometryError: a bare decoder, another width, no second delta dictionary, no base
            dictionary.
    """
    named = {"dictionary": dictionary, "reference": reference}
    named |= {f"second[{i}]": x for i, x in enumerate(seconds)} | {
        f"base_dictionaries[{i}]": x for i, x in enumerate(bases)
    }
    for name, x in named.items():
        if not (callable(getattr(x, "encode", None)) and hasattr(x, "W_dec") and hasattr(x, "alive")):
            raise GeometryError(
                f"{name} is {type(x).__name__}, and firing needs an encoder: give a deltasae_ray.Dictionary"
            )
        if x.W_dec.shape[1] != width:
            raise GeometryError(
                f"{name} has d_model={x.W_dec.shape[1]}, the rows {width}: another model's dictionary?"
            )
        if not bool(x.alive.any()):
            raise GeometryError(f"every latent of {name} is dead: train it longer, or lower its size")
    if not seconds:
        raise GeometryError(
            "second is empty: give a delta dictionary of another seed, which decides what repeats"
        )
    if not bases:
        raise GeometryError(
            "base_dictionaries is empty: give three or more, fitted to base activations with other seeds"
        )
