"""The audit on planted dictionaries: which latents are invisible, which come back, and what chance says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deltasae_ray.analyses.audit.direction_figures import DRAWS, TESTED, peaks, unexplained
from deltasae_ray.analyses.audit.figures import TOTALS, Audit, AuditInputs, audit
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.sae.dictionary import Dictionary

D, LATENTS = 48, 24
SETTINGS = Settings(k=2, null_draws=5)
HIDDEN, LOUD, ONCE = 5, 7, 11
"""The latent that the reference lacks; the one of most energy; the one that no other seed has."""


def dictionary_of(rows: torch.Tensor, energy: torch.Tensor | None = None) -> Dictionary:
    """Tied weights: codes are the positive part of x · row."""
    n = len(rows)
    zeros, ones = torch.zeros(n), torch.ones(n)
    return Dictionary(
        rows.T.contiguous(),
        rows,
        zeros,
        torch.zeros(D),
        "topk",
        n,
        firing=ones / 2,
        energy=ones if energy is None else energy,
    )


@pytest.fixture(scope="module")
def planted() -> AuditInputs:
    """Orthogonal latents, all but HIDDEN in the reference, whose base activations live in the reference's
    span and a little beyond."""
    g = torch.Generator().manual_seed(100)
    rows = torch.linalg.qr(torch.randn(D, D, generator=g)).Q.T[:LATENTS].contiguous()
    energy = torch.ones(LATENTS)
    energy[LOUD] = 10.0
    shown = torch.cat(
        [rows[:HIDDEN], rows[HIDDEN + 1 :], F.normalize(torch.randn(20, D, generator=g), dim=1)]
    )
    other = rows.clone()
    other[ONCE] = F.normalize(torch.randn(D, generator=g), dim=0)
    codes = torch.rand(2000, LATENTS, generator=g) * (torch.rand(2000, LATENTS, generator=g) < 0.2)
    codes[0, HIDDEN] = 50.0  # rarely, and very loud
    deltas = codes @ rows
    base = torch.randn(3000, D, generator=g) * torch.linspace(3, 0.3, D)
    return AuditInputs(
        dictionary_of(rows, energy), dictionary_of(shown), (dictionary_of(other),), Moments.of(deltas),
        Moments.of(base).spectrum, deltas.numpy()
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(planted: AuditInputs) -> Audit:
    return audit(planted, SETTINGS)


def by_latent(found: Audit) -> dict:
    return {row.latent: row for row in found.rows}


def test_the_latent_that_the_reference_lacks_is_the_invisible_one(found: Audit) -> None:
    rows = by_latent(found)
    assert (
        rows[HIDDEN].invisibility.value > 0.5
        and rows[HIDDEN].blind_spot == rows[HIDDEN].energy_share * rows[HIDDEN].invisibility.value
    )
    for latent in set(range(LATENTS)) - {HIDDEN}:
        assert (
            rows[latent].invisibility.value == pytest.approx(0, abs=1e-5)
            and rows[latent].invisibility.p > 0.9
        )
        assert rows[latent].percentile == 0 and rows[latent].percentile_haar == 0
        assert abs(rows[latent].nearest_cosine) == pytest.approx(1, abs=1e-5)
    assert rows[3].nearest == 3 and rows[LOUD].nearest == LOUD - 1


def test_a_direction_that_is_random_to_the_reference_stands_at_a_uniform_percentile(
    planted: AuditInputs,
) -> None:
    g = torch.Generator().manual_seed(3)
    random = dictionary_of(F.normalize(torch.randn(200, D, generator=g), dim=1))
    ranked = [
        r for r in audit(replace(planted, dictionary=random), SETTINGS).rows if r.percentile_haar is not None
    ]
    assert 0.35 < np.mean([r.percentile_haar for r in ranked]) < 0.65 and len(ranked) >= TESTED
    assert np.std([r.percentile_haar for r in ranked]) > 0.2


def test_one_that_no_other_seed_finds_does_not_repeat_and_falls_in_rank(found: Audit) -> None:
    rows = by_latent(found)
    assert rows[ONCE].repeats is False and all(rows[i].repeats for i in range(LATENTS) if i != ONCE)
    assert rows[ONCE].rank == LATENTS and rows[LOUD].rank == 1 and rows[HIDDEN].peak_rank == 1
    again = found.totals["latent_repeating_energy"]
    assert again.value == pytest.approx(1 - rows[ONCE].energy_share) and again.ci is not None
    assert again.null < 0.2 and rows[LOUD].reproducibility.null < 0.8
    assert rows[LOUD].energy_share == pytest.approx(10 / (LATENTS + 9))


def test_the_mean_change_stands_first(planted: AuditInputs, found: Audit) -> None:
    first = found.rows[0]
    rows = planted.delta_eval.astype(np.float64)
    share = np.square(rows.mean(0)).sum() / np.square(rows).sum(1).mean()
    assert first.latent is None and first.rank == 0 and first.energy_share == pytest.approx(share, rel=1e-6)
    assert (
        first.invisibility.n == DRAWS
        and first.reproducibility.value is None
        and "no training seed" in first.reproducibility.reason
    )
    assert [r.rank for r in found.leading(3)] == [0, 1, 2, 3]


def test_blind_energy_weighs_by_energy(found: Audit) -> None:
    rows = found.rows[1:]
    expected = sum(r.energy_share * r.invisibility.value for r in rows)
    total = found.totals["latent_blind_energy"]
    assert (
        total.value == pytest.approx(expected)
        and total.null > total.value
        and total.p > 0.9
        and total.ci is not None
    )


def test_one_seed_leaves_reproducibility_undefined_and_ranks_by_energy(planted: AuditInputs) -> None:
    found = audit(replace(planted, others=()), SETTINGS)
    assert all(
        r.reproducibility.value is None and r.reproducibility.reason and r.repeats is None for r in found.rows
    )
    assert found.rows[1].latent == LOUD and found.totals["latent_repeating_energy"].value is None
    assert "one training seed" in found.totals["latent_repeating_energy"].reason


def test_an_adapter_without_effect_has_no_rows_and_says_why(planted: AuditInputs) -> None:
    nothing = np.zeros((100, D), np.float32)
    found = audit(replace(planted, delta=Moments.of(nothing), delta_eval=nothing), SETTINGS)
    assert not found.rows and set(found.totals) == set(TOTALS)
    assert all(m.value is None and "zero" in m.reason for m in found.totals.values())


def test_dead_latents_are_not_audited(planted: AuditInputs) -> None:
    firing = torch.ones(LATENTS)
    firing[LOUD] = 0
    found = audit(replace(planted, dictionary=replace(planted.dictionary, firing=firing)), SETTINGS)
    assert LOUD not in by_latent(found) and found.alive == LATENTS - 1


def test_peaks_are_the_largest_energy_that_a_token_is_given() -> None:
    rows = torch.eye(D)[:2]
    assert peaks(dictionary_of(rows), np.eye(D, dtype=np.float32) * 3).tolist() == [9.0, 9.0]


def test_what_atoms_leave_of_a_direction() -> None:
    eye = torch.eye(4)
    left = unexplained(torch.tensor([[1.0, 0, 0, 1.0], [0, 0, 0, 2.0]]), eye[:3], 2)
    assert left.tolist() == pytest.approx([0.5, 1.0])
