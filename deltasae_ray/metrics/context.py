"""What all dictionaries of one adapter and layer share that are held against one reference: its own codings,
firings and spectra."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.adapter_layer import AdapterLayer
from deltasae_ray.metrics.coding.dictionary_coding import Coding
from deltasae_ray.metrics.firing.firings import Firings
from deltasae_ray.metrics.geometry.matching import Matches, match
from deltasae_ray.metrics.geometry.subspaces import decoder_spectrum
from deltasae_ray.metrics.inputs import DictionaryLike, LayerInputs, Settings, living_energy, living_rows
from deltasae_ray.metrics.moments import Spectrum


@dataclass(frozen=True, eq=False)
class Context:
    """Computed once per reference, and only what is asked for."""

    layer: AdapterLayer
    reference: DictionaryLike
    base_control: DictionaryLike | None = None

    @classmethod
    def of(cls, inputs: LayerInputs, settings: Settings) -> "Context":
        return cls(AdapterLayer(inputs, settings), inputs.reference, inputs.base_control)

    @cached_property
    def reference_firings(self) -> Firings:
        """Firings of the reference on the base activations of the rows that co-activation is counted on."""
        rows = self.layer.rows
        return Firings.of(self.reference, rows.base_fit, rows.base_eval, self.layer.firing_rows)

    @cached_property
    def reference_rows(self) -> Float[Tensor, "latent d_model"]:
        return living_rows(self.reference)

    @cached_property
    def reference_spectrum(self) -> Spectrum:
        """The spectrum of the reference's decoder, weighted by the energies on its own data."""
        return decoder_spectrum(self.reference_rows, living_energy(self.reference))

    @cached_property
    def reference_row_spectrum(self) -> Spectrum:
        """The spectrum of the reference's whole decoder, every row alike, dead ones included: as
        published."""
        rows = self.reference.W_dec.detach()
        return decoder_spectrum(rows, np.ones(len(rows)))

    @cached_property
    def drawn_matches(self) -> Callable[[int], list[Matches]]:
        """How covariance-matched dictionaries of that size match the reference: the primary null of
        matching."""
        return lru_cache(4)(
            lambda num_rows: [match(drawn, self.reference_rows) for drawn in self.layer.drawn(num_rows)]
        )

    @cached_property
    def reference_coding(self) -> Coding:
        return self.layer.code(self.reference_rows, trimmed=False)

    @cached_property
    def trimmed_reference_coding(self) -> Coding:
        return self.layer.code(self.reference_rows, trimmed=True)

    @cached_property
    def control_coding(self) -> Coding | None:
        return (
            None
            if self.base_control is None
            else self.layer.code(living_rows(self.base_control), trimmed=False)
        )

    @cached_property
    def trimmed_control_coding(self) -> Coding | None:
        return (
            None
            if self.base_control is None
            else self.layer.code(living_rows(self.base_control), trimmed=True)
        )
