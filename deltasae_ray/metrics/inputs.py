"""What a comparison is made of: rows of one adapter and layer, dictionaries, and how much is drawn and
coded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.firing.surplus import strata


class DictionaryLike(Protocol):
    """What is asked of a dictionary: a sparse autoencoder in raw units, with what its latents did on its own
    training tokens."""

    @property
    def W_dec(self) -> Float[Tensor, "latent d_model"]: ...  # noqa: N802
    @property
    def alive(self) -> Bool[Tensor, " latent"]: ...
    @property
    def firing(self) -> Float[Tensor, " latent"]: ...
    @property
    def energy(self) -> Float[Tensor, " latent"]: ...
    @property
    def k(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def encode(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token latent"]: ...
    def decode(self, z: Float[Tensor, "token latent"]) -> Float[Tensor, "token d_model"]: ...


@dataclass(frozen=True)
class Settings:
    """Draws and budgets; the same for every leaf of a study."""

    k: int = 8
    """Atoms per token of the missing share, 1..8."""
    code_tokens: int = 1024
    """Evaluation tokens that are sparse-coded."""
    null_draws: int = 5
    """Sign flips, covariance-matched dictionaries and rotations behind each null."""
    bootstrap: int = 1000
    """Resamples of documents."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LayerRows:
    """One adapter at one layer. Rows at position 0 are already dropped; base rows are those of the deltas, in
    the same order."""

    delta_fit: Float[np.ndarray, "token d_model"]
    delta_eval: Float[np.ndarray, "eval_token d_model"]
    base_fit: Float[np.ndarray, "token d_model"]
    base_eval: Float[np.ndarray, "eval_token d_model"]
    fit_docs: Sequence | np.ndarray
    """Document of each training row."""
    eval_docs: Sequence | np.ndarray
    """Document of each evaluation row."""
    eval_tokens: Int[np.ndarray, " eval_token"] | None = field(default=None, kw_only=True)
    """Token of each evaluation row, where it is known."""
    eval_positions: Int[np.ndarray, " eval_token"] | None = field(default=None, kw_only=True)
    """Place of each evaluation row in its document."""

    def __post_init__(self) -> None:
        if self.delta_fit.shape != self.base_fit.shape or self.delta_eval.shape != self.base_eval.shape:
            raise GeometryError(
                f"deltas {self.delta_fit.shape} and {self.delta_eval.shape} against base rows"
                f" {self.base_fit.shape} and {self.base_eval.shape}: same tokens, same rows is what makes a"
                " delta"
            )
        for name in ("eval_tokens", "eval_positions"):
            known = getattr(self, name)
            if known is not None and len(known) != len(self.delta_eval):
                raise GeometryError(
                    f"{name} has {len(known)} entries for {len(self.delta_eval)} rows: one per row is needed"
                )
        for docs, rows, split in (
            (self.fit_docs, self.delta_fit, "training"),
            (self.eval_docs, self.delta_eval, "evaluation"),
        ):
            if len(docs) != len(rows):
                raise GeometryError(
                    f"{len(docs)} document ids for {len(rows)} {split} rows: one per row is needed"
                )

    def strata(self, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"] | None:
        """Groups of evaluation rows, those of one token and band of positions; None where tokens are not
        known."""
        if self.eval_tokens is None:
            return None
        return strata(
            self.eval_tokens[rows], None if self.eval_positions is None else self.eval_positions[rows]
        )

    @cached_property
    def silent(self) -> bool:
        """Whether the adapter changes nothing here."""
        return not np.any(self.delta_fit) or not np.any(self.delta_eval)


@dataclass(frozen=True, eq=False)
class LayerInputs(LayerRows):
    """Rows of an adapter and layer, and the one reference that deltas are held against."""

    reference: DictionaryLike
    base_control: DictionaryLike | None = None
    """A dictionary of base activations of other documents and another seed: what agreement between two base
    dictionaries looks like. By the grid's recipe, which a reference that was given does not share."""


@dataclass(frozen=True, eq=False)
class LeafInputs:
    """One delta dictionary and the dictionaries that say how well it could do."""

    dictionary: DictionaryLike
    beside: Mapping[str, DictionaryLike] = field(default_factory=dict)
    """Role → what was fitted for a control (`analyses/controls.py` names roles), the same recipe but for what
    the control changes."""
    untrained: Float[Tensor, "latent d_model"] | None = None
    """The decoder at its start, all rows: what matching gives before anything is learned."""

    @property
    def second(self) -> DictionaryLike | None:
        """The dictionary of the same recipe with another seed: the ceiling."""
        return self.beside.get("second")


def living_rows(dictionary: DictionaryLike) -> Float[Tensor, "latent d_model"]:
    """Decoder rows of the latents that fired in training: dead ones belong in no geometry."""
    rows = dictionary.W_dec.detach()[dictionary.alive]
    if not len(rows):
        raise GeometryError("every latent of a dictionary is dead: train longer, or lower its size")
    return rows.float()


def living_energy(dictionary: DictionaryLike) -> Float[Tensor, " latent"]:
    """E[z²] of the same latents, on the dictionary's own training tokens."""
    return dictionary.energy.detach()[dictionary.alive].double().cpu()
