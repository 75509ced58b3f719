"""What all dictionaries of one adapter and layer share: moments, null draws, coded tokens, the reference's own codings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deltasae_ray.divergence.arrays import matrix
from deltasae_ray.divergence.coder import Coder, Coding, make_coder, spread
from deltasae_ray.divergence.firings import FiringRows, Firings
from deltasae_ray.divergence.moments import Moments, Spectrum, matched_rows, moments_by_group
from deltasae_ray.divergence.rotation import Rotations
from deltasae_ray.divergence.statistics import bootstrap_counts, document_codes
from deltasae_ray.divergence.subspaces import decoder_spectrum
from deltasae_ray.errors import GeometryError

GROUPS = 10
"""Groups of documents that a jackknife deletes in turn."""


class DictionaryLike(Protocol):
    """What is asked of a dictionary: a sparse autoencoder in raw units, with what its latents did on its own training tokens."""

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
class LayerInputs:
    """One adapter at one layer. Rows at position 0 are already dropped; base rows are those of the deltas, in the same order."""

    delta_fit: Float[np.ndarray, "token d_model"]
    delta_eval: Float[np.ndarray, "eval_token d_model"]
    base_fit: Float[np.ndarray, "token d_model"]
    base_eval: Float[np.ndarray, "eval_token d_model"]
    fit_docs: Sequence | np.ndarray
    """Document of each training row."""
    eval_docs: Sequence | np.ndarray
    """Document of each evaluation row."""
    reference: DictionaryLike
    base_control: DictionaryLike | None = None
    """A dictionary of base activations of other documents and another seed: what agreement between two base dictionaries looks like. By
    the grid's recipe, which a reference that was given does not share."""
    random_deltas: tuple[Float[np.ndarray, "token d_model"], Float[np.ndarray, "eval_token d_model"]] | None = None
    """Training and evaluation deltas of a random adapter of the same strength, on the same tokens."""

    def __post_init__(self) -> None:
        if self.delta_fit.shape != self.base_fit.shape or self.delta_eval.shape != self.base_eval.shape:
            raise GeometryError(
                f"deltas {self.delta_fit.shape} and {self.delta_eval.shape} against base rows {self.base_fit.shape} and "
                f"{self.base_eval.shape}: same tokens, same rows is what makes a delta"
            )
        for mine, random in zip((self.delta_fit, self.delta_eval), self.random_deltas or (), strict=False):
            if mine.shape != random.shape:
                raise GeometryError(f"a random adapter's deltas {random.shape} beside {mine.shape}: the same rows are needed")
        for docs, rows, split in ((self.fit_docs, self.delta_fit, "training"), (self.eval_docs, self.delta_eval, "evaluation")):
            if len(docs) != len(rows):
                raise GeometryError(f"{len(docs)} document ids for {len(rows)} {split} rows: one per row is needed")


def living_rows(dictionary: DictionaryLike) -> Float[Tensor, "latent d_model"]:
    """Decoder rows of the latents that fired in training: dead ones belong in no geometry."""
    rows = dictionary.W_dec.detach()[dictionary.alive]
    if not len(rows):
        raise GeometryError("every latent of a dictionary is dead: train longer, or lower its size")
    return rows.float()


def living_energy(dictionary: DictionaryLike) -> Float[Tensor, " latent"]:
    """E[z²] of the same latents, on the dictionary's own training tokens."""
    return dictionary.energy.detach()[dictionary.alive].double().cpu()


@dataclass(frozen=True, eq=False)
class Context:
    """Computed once per adapter and layer, and only what is asked for."""

    inputs: LayerInputs
    settings: Settings

    @cached_property
    def _fit_groups(self) -> tuple[Int[np.ndarray, " token"], int]:
        """Training rows by groups of documents, dealt at random: what the jackknife deletes. And the number of groups."""
        codes, num_docs = document_codes(self.inputs.fit_docs)
        groups = min(GROUPS, num_docs)
        return np.random.default_rng([self.settings.seed, 2]).permutation(np.arange(num_docs) % groups)[codes], groups

    @cached_property
    def delta_groups(self) -> list[Moments]:
        """Moments of the training deltas by group of documents."""
        return moments_by_group(self.inputs.delta_fit, *self._fit_groups)

    @cached_property
    def base_groups(self) -> list[Moments]:
        """Moments of the base activations by group of documents."""
        return moments_by_group(self.inputs.base_fit, *self._fit_groups)

    @cached_property
    def delta(self) -> Moments:
        """Of the training deltas."""
        return reduce(add, self.delta_groups)

    @cached_property
    def base(self) -> Moments:
        """Of the base activations on the training tokens."""
        return reduce(add, self.base_groups)

    @cached_property
    def documents(self) -> tuple[Int[np.ndarray, " eval_token"], int]:
        """Document of each evaluation row as a number from 0, and how many there are."""
        return document_codes(self.inputs.eval_docs)

    @cached_property
    def counts(self) -> Float[np.ndarray, "draw doc"]:
        """Bootstrap resamples of all evaluation documents."""
        return bootstrap_counts(self.documents[1], self.settings.bootstrap, np.random.default_rng([self.settings.seed, 1]))

    @cached_property
    def coded_rows(self) -> Int[np.ndarray, " token"]:
        """The evaluation rows that are sparse-coded, spread evenly."""
        return spread(len(self.inputs.delta_eval), self.settings.code_tokens)

    @cached_property
    def firing_rows(self) -> FiringRows:
        """On which co-activation is counted."""
        return FiringRows.of(len(self.inputs.delta_fit), *self.documents, self.settings.code_tokens)

    @cached_property
    def reference_firings(self) -> Firings:
        """Of the reference on the base activations of those rows."""
        return Firings.of(self.inputs.reference, self.inputs.base_fit, self.inputs.base_eval, self.firing_rows)

    @cached_property
    def coder(self) -> Coder:
        return self._coder(torch.arange(self.inputs.delta_fit.shape[1]), self.delta)

    @cached_property
    def largest_coordinates(self) -> Int[Tensor, " 3"]:
        """The three coordinates that hold most of the deltas' variance."""
        return self.delta.covariance.diagonal().topk(min(3, len(self.delta.mean) - 1)).indices

    @cached_property
    def other_coordinates(self) -> Int[Tensor, " column"]:
        keep = torch.ones(len(self.delta.mean), dtype=torch.bool)
        keep[self.largest_coordinates] = False
        return keep.nonzero()[:, 0]

    @cached_property
    def trimmed(self) -> Moments:
        """Of the training deltas without their three largest coordinates."""
        return self.delta.columns(self.other_coordinates)

    @cached_property
    def trimmed_base(self) -> Moments:
        """Of the base activations without the coordinates that the deltas are largest in."""
        return self.base.columns(self.other_coordinates)

    @cached_property
    def trimmed_coder(self) -> Coder:
        return self._coder(self.other_coordinates, self.trimmed)

    @cached_property
    def reference_rows(self) -> Float[Tensor, "latent d_model"]:
        return living_rows(self.inputs.reference)

    @cached_property
    def reference_spectrum(self) -> Spectrum:
        """Of the reference's decoder, weighted by the energies on its own data."""
        return decoder_spectrum(self.reference_rows, living_energy(self.inputs.reference))

    @cached_property
    def reference_row_spectrum(self) -> Spectrum:
        """Of the reference's whole decoder, every row alike, dead ones included: as published."""
        rows = self.inputs.reference.W_dec.detach()
        return decoder_spectrum(rows, np.ones(len(rows)))

    def codings(self, atoms: Float[Tensor, "latent d_model"], *, trimmed: bool) -> Coding:
        """The coded rows by these atoms, with or without the three largest coordinates."""
        return self.trimmed_coder.code(atoms[:, self.other_coordinates]) if trimmed else self.coder.code(atoms)

    @cached_property
    def reference_coding(self) -> Coding:
        return self.codings(self.reference_rows, trimmed=False)

    @cached_property
    def trimmed_reference_coding(self) -> Coding:
        return self.codings(self.reference_rows, trimmed=True)

    @cached_property
    def control_coding(self) -> Coding | None:
        control = self.inputs.base_control
        return None if control is None else self.codings(living_rows(control), trimmed=False)

    @cached_property
    def trimmed_control_coding(self) -> Coding | None:
        control = self.inputs.base_control
        return None if control is None else self.codings(living_rows(control), trimmed=True)

    @cached_property
    def random_coder(self) -> Coder | None:
        """Codes the random adapter's deltas as the others' are."""
        if self.inputs.random_deltas is None:
            return None
        fit, evaluation = self.inputs.random_deltas
        return self._coder_of(fit, evaluation, torch.arange(fit.shape[1]), Moments.of(fit))

    @cached_property
    def random_reference_coding(self) -> Coding | None:
        """Of the random adapter's deltas by the reference."""
        return None if self.random_coder is None else self.random_coder.code(self.reference_rows)

    @cached_property
    def base_atoms_coding(self) -> Coding:
        """By as many featureless atoms from N(0, Σ_h) as the reference has."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return self.codings(matched_rows(self.base.spectrum, len(self.reference_rows), generator), trimmed=False)

    @cached_property
    def rotations(self) -> Rotations:
        """The reference, Haar-rotated."""
        return Rotations(self.reference_coding, self.settings.null_draws, self.settings.seed)

    @cached_property
    def trimmed_rotations(self) -> Rotations:
        """The same without the three largest coordinates."""
        return Rotations(self.trimmed_reference_coding, self.settings.null_draws, self.settings.seed)

    def _coder(self, columns: Tensor, moments: Moments) -> Coder:
        return self._coder_of(self.inputs.delta_fit, self.inputs.delta_eval, columns, moments)

    def _coder_of(self, fit: np.ndarray, evaluation: np.ndarray, columns: Tensor, moments: Moments) -> Coder:
        s = self.settings
        rows = matrix(evaluation[self.coded_rows], "evaluation deltas")[:, columns]
        training = matrix(fit[spread(len(fit), s.code_tokens)], "training deltas")[:, columns]
        docs = self.documents[0][self.coded_rows]
        return make_coder(
            rows, training, docs, moments, k=s.k, draws=s.null_draws, bootstrap=s.bootstrap, max_tokens=s.code_tokens, seed=s.seed
        )
