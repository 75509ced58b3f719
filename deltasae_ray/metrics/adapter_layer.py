"""What all dictionaries of one adapter and layer share, whatever they are held against: moments, null draws,
coded tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from operator import add

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.metrics.arrays import matrix, unit_rows
from deltasae_ray.metrics.coding.dictionary_coding import Coder, Coding, make_coder, spread
from deltasae_ray.metrics.coding.mean_change import MeanVector
from deltasae_ray.metrics.coding.reconstruction import Baselines
from deltasae_ray.metrics.coding.sample import Average, flips, use_of
from deltasae_ray.metrics.coding.variants import VARIANTS
from deltasae_ray.metrics.firing.firings import FiringRows, Firings
from deltasae_ray.metrics.geometry.subspaces import decoder_spectrum
from deltasae_ray.metrics.inputs import DictionaryLike, LayerRows, Settings, living_energy, living_rows
from deltasae_ray.metrics.moments import Moments, Spectrum, matched_rows, moments_by_group
from deltasae_ray.metrics.statistics import bootstrap_counts, document_codes

GROUPS = 10
"""Groups of documents that a jackknife deletes in turn."""
_RECENT = 4
"""Dictionaries, or sizes of them, whose part is kept: a leaf's second seed is the next leaf's own, and its
nulls are those of its size."""


@dataclass(frozen=True, eq=False)
class AdapterLayer:
    """Computed once per adapter and layer, and only what is asked for."""

    rows: LayerRows
    settings: Settings

    @cached_property
    def fit_documents(self) -> tuple[Int[np.ndarray, " token"], int]:
        """Document of each training row as a number from 0, and how many there are."""
        return document_codes(self.rows.fit_docs)

    @cached_property
    def _fit_groups(self) -> tuple[Int[np.ndarray, " token"], int]:
        """Training rows by groups of documents, dealt at random: what the jackknife deletes. And the number
        of groups."""
        codes, num_docs = self.fit_documents
        groups = min(GROUPS, num_docs)
        return (
            np.random.default_rng([self.settings.seed, 2]).permutation(np.arange(num_docs) % groups)[codes],
            groups,
        )

    @cached_property
    def delta_groups(self) -> list[Moments]:
        """Moments of the training deltas by group of documents."""
        return moments_by_group(self.rows.delta_fit, *self._fit_groups)

    @cached_property
    def base_groups(self) -> list[Moments]:
        """Moments of the base activations by group of documents."""
        return moments_by_group(self.rows.base_fit, *self._fit_groups)

    @cached_property
    def delta(self) -> Moments:
        """Moments of the training deltas."""
        return reduce(add, self.delta_groups)

    @cached_property
    def base(self) -> Moments:
        """Moments of the base activations on the training tokens."""
        return reduce(add, self.base_groups)

    @cached_property
    def documents(self) -> tuple[Int[np.ndarray, " eval_token"], int]:
        """Document of each evaluation row as a number from 0, and how many there are."""
        return document_codes(self.rows.eval_docs)

    @cached_property
    def counts(self) -> Float[np.ndarray, "draw doc"]:
        """Bootstrap resamples of all evaluation documents."""
        return bootstrap_counts(
            self.documents[1], self.settings.bootstrap, np.random.default_rng([self.settings.seed, 1])
        )

    @cached_property
    def coded_rows(self) -> Int[np.ndarray, " token"]:
        """The evaluation rows that are sparse-coded, spread evenly."""
        return spread(len(self.rows.delta_eval), self.settings.code_tokens)

    @cached_property
    def coded_deltas(self) -> Float[Tensor, "token d_model"]:
        """The deltas of those rows, raw."""
        return torch.from_numpy(np.ascontiguousarray(self.rows.delta_eval[self.coded_rows])).float()

    @cached_property
    def coded_base(self) -> Float[Tensor, "token d_model"]:
        """The base activations of those rows."""
        return torch.from_numpy(np.ascontiguousarray(self.rows.base_eval[self.coded_rows])).float()

    @cached_property
    def flipped(self) -> list[Float[Tensor, "token d_model"]]:
        """The coded deltas about their training mean, with signs flipped in their eigenbasis."""
        about = self.coded_deltas - self.delta.mean.float()
        return flips(about, self.delta.spectrum, self.settings.null_draws, self.settings.seed)

    @cached_property
    def firing_rows(self) -> FiringRows:
        """On which co-activation is counted."""
        return FiringRows.of(len(self.rows.delta_fit), *self.documents, self.settings.code_tokens)

    @cached_property
    def firings(self) -> Callable[[DictionaryLike], Firings]:
        """Firings of a dictionary of deltas on the deltas of the rows that co-activation is counted on."""
        rows = self.rows
        return lru_cache(_RECENT)(
            lambda dictionary: Firings.of(dictionary, rows.delta_fit, rows.delta_eval, self.firing_rows)
        )

    @cached_property
    def coder(self) -> Coder:
        return self._coder(torch.arange(self.rows.delta_fit.shape[1]), self.delta)

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
        """Moments of the training deltas without their three largest coordinates."""
        return self.delta.columns(self.other_coordinates)

    @cached_property
    def trimmed_base(self) -> Moments:
        """Moments of the base activations without the coordinates that the deltas are largest in."""
        return self.base.columns(self.other_coordinates)

    @cached_property
    def trimmed_coder(self) -> Coder:
        return self._coder(self.other_coordinates, self.trimmed)

    def code(self, atoms: Float[Tensor, "latent d_model"], *, trimmed: bool) -> Coding:
        """The coded rows by these atoms, with or without the three largest coordinates."""
        return (
            self.trimmed_coder.code(atoms[:, self.other_coordinates]) if trimmed else self.coder.code(atoms)
        )

    @cached_property
    def coding(self) -> Callable[[DictionaryLike, bool], Coding]:
        """The coded rows by the living latents of a dictionary, and whether they are trimmed."""
        return lru_cache(2 * _RECENT)(
            lambda dictionary, trimmed: self.code(living_rows(dictionary), trimmed=trimmed)
        )

    @cached_property
    def baselines(self) -> Callable[[int, bool], Baselines]:
        """Makes the baselines for a dictionary's size, and keeps them by whether the rows are trimmed."""
        coder, seed = {False: self.coder, True: self.trimmed_coder}, self.settings.seed
        return lru_cache(_RECENT)(lambda size, trimmed: Baselines.of(coder[trimmed], size, seed))

    @cached_property
    def spectrum_of(self) -> Callable[[DictionaryLike], Spectrum]:
        """The spectrum of a dictionary's living rows, weighted by their energies on its own data."""
        return lru_cache(_RECENT)(
            lambda dictionary: decoder_spectrum(living_rows(dictionary), living_energy(dictionary))
        )

    @cached_property
    def drawn(self) -> Callable[[int], list[Float[Tensor, "row d_model"]]]:
        """Covariance-matched dictionaries of that size: rows from N(0, Σ_δ)."""
        return lru_cache(1)(self._drawn)

    def _drawn(self, num_rows: int) -> list[Float[Tensor, "row d_model"]]:
        generator = torch.Generator().manual_seed(self.settings.seed)
        return [
            matched_rows(self.delta.spectrum, num_rows, generator) for _ in range(self.settings.null_draws)
        ]

    @cached_property
    def carried(self) -> Callable[[int], Float[np.ndarray, "draw row"]]:
        """What each of their rows carries of the training deltas when they are coded with them."""
        return lru_cache(_RECENT)(self._carried)

    def _carried(self, num_rows: int) -> Float[np.ndarray, "draw row"]:
        coder, k = self.coder, min(self.coder.k, num_rows)
        return np.stack(
            [
                use_of(coder.chooser.x, coder.outside_mean(a), k).double().cpu().numpy()
                for a in self.drawn(num_rows)
            ]
        )

    @cached_property
    def mean_vector(self) -> Callable[[bool, Average], MeanVector]:
        """The mean change, whether without the three largest coordinates, and of changes as they are or of
        their directions."""
        return lru_cache(len(VARIANTS))(self._mean_vector)

    def _mean_vector(self, trimmed: bool, average: Average) -> MeanVector:
        columns = self.other_coordinates if trimmed else slice(None)
        rows = torch.from_numpy(np.asarray(self.rows.delta_eval))[:, columns]
        base = (self.trimmed_base if trimmed else self.base).spectrum
        return MeanVector.of(
            unit_rows(rows) if average == "token" else rows,
            self.documents[0],
            base,
            self.counts,
            seed=self.settings.seed,
        )

    def _coder(self, columns: Tensor, moments: Moments) -> Coder:
        return self._coder_of(self.rows.delta_fit, self.rows.delta_eval, columns, moments)

    def _coder_of(self, fit: np.ndarray, evaluation: np.ndarray, columns: Tensor, moments: Moments) -> Coder:
        s = self.settings
        rows = matrix(evaluation[self.coded_rows], "evaluation deltas")[:, columns]
        training = matrix(fit[spread(len(fit), s.code_tokens)], "training deltas")[:, columns]
        docs = self.documents[0][self.coded_rows]
        return make_coder(rows, training, docs, moments, s)
