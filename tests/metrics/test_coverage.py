"""Over 200 planted repetitions, 95 % intervals hold the truth 90-98 % of the time, and null p-values are
uniform."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from deltasae_ray.metrics.adapter_layer import AdapterLayer
from deltasae_ray.metrics.change_size import participation_ratio
from deltasae_ray.metrics.coding.dictionary_coding import Coder, make_coder
from deltasae_ray.metrics.coding.missing_share import share_missing
from deltasae_ray.metrics.coding.reconstruction import by_pursuit
from deltasae_ray.metrics.coding.sample import Resamples
from deltasae_ray.metrics.geometry.angles import pca_angles
from deltasae_ray.metrics.geometry.cka import linear_cka
from deltasae_ray.metrics.geometry.latent_shares import novel_share
from deltasae_ray.metrics.geometry.matching import best_cosines, matched_draws, max_cosine
from deltasae_ray.metrics.geometry.matching_figures import mean_match
from deltasae_ray.metrics.inputs import LayerRows, Settings
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.moments import Moments, Spectrum, matched_rows
from deltasae_ray.metrics.over_seeds import Cell, over_seeds
from tests.metrics.test_over_seeds import covered
from tests.metrics.worlds import ACTIVE, ATOMS, D_MODEL, sparse, units

REPETITIONS, DOCUMENTS, TOKENS = 200, 60, 20
pytestmark = pytest.mark.prove


def coverage(hits: list[bool]) -> float:
    assert len(hits) == REPETITIONS
    return float(np.mean(hits))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def documents_of(atoms: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """[count * TOKENS, D_MODEL]: documents differ in which atoms they prefer and in how strongly they
    change."""
    rows = sparse(atoms, count * TOKENS, ACTIVE, generator(seed))
    strength = torch.exp(0.3 * torch.randn(count, generator=generator(seed + 1))).repeat_interleave(TOKENS)
    return rows * strength[:, None]


def test_max_cosine_covers_the_mean_over_all_latents_that_could_be() -> None:
    reference = units(128, generator(0))

    def latents(count: int, seed: int) -> torch.Tensor:
        g = generator(seed)
        return normalize(
            reference[torch.randint(128, (count,), generator=g)]
            + 0.12 * torch.randn(count, D_MODEL, generator=g),
            dim=1,
        )

    truth = max_cosine(latents(100_000, 1), reference).value
    found = [max_cosine(latents(64, 2 + i), reference) for i in range(REPETITIONS)]
    assert 0.90 <= coverage([m.ci[0] <= truth <= m.ci[1] for m in found]) <= 0.98


def setting() -> tuple[torch.Tensor, torch.Tensor, Moments, torch.Tensor]:
    atoms = units(ATOMS, generator(0))
    training = documents_of(atoms, 500, 1)
    return (
        atoms,
        torch.cat([atoms[: ATOMS // 2], units(ATOMS // 2, generator(2))]),
        Moments.of(training),
        training,
    )


def coder_for(
    deltas: torch.Tensor, training: torch.Tensor, moments: Moments, seed: int, draws: int = 5
) -> Coder:
    docs = np.arange(len(deltas)) // TOKENS
    return make_coder(
        deltas,
        training,
        docs,
        moments,
        Settings(k=ACTIVE, code_tokens=len(deltas), null_draws=draws, bootstrap=400, seed=seed),
    )


@cache
def missing_shares() -> tuple[float, list[Measure]]:
    """M on very many documents, and M on each of REPETITIONS samples of DOCUMENTS."""
    atoms, reference, moments, training = setting()

    def share(count: int, seed: int, draws: int = 5) -> Measure:
        deltas = documents_of(atoms, count, seed)
        coder = coder_for(deltas, training, moments, seed, draws)
        return share_missing(coder.code(reference).structure(), coder.code(atoms).structure(), 30.0)

    truth = share(2000, 7, draws=40).value
    assert truth is not None
    return truth, [share(DOCUMENTS, 1000 + 10 * i) for i in range(REPETITIONS)]


def test_the_missing_share_covers_its_value_on_all_documents() -> None:
    truth, found = missing_shares()
    assert 0.90 <= coverage([m.ci[0] <= truth <= m.ci[1] for m in found]) <= 0.98


@pytest.mark.parametrize(("seeds", "cells"), [(2, 6), (3, 2)])
def test_the_missing_share_over_seeds_covers_its_value_on_all_documents_and_seeds(
    seeds: int, cells: int
) -> None:
    """Seeds move M by a known spread, as large as that over documents, drawn five times for each sample of
    documents; intervals of single seeds, which do not know it, miss far more.
    """
    truth, found = missing_shares()
    spread, rng = float(np.std([m.value for m in found])) * np.sqrt(seeds), np.random.default_rng(seeds)

    def moved(m: Measure, by: float) -> Measure:
        return replace(m, value=m.value + by, ci=(m.ci[0] + by, m.ci[1] + by))

    hits, alone = [], []
    for i in 5 * list(range(REPETITIONS)):
        here = [found[(i + c) % REPETITIONS] for c in range(cells)]
        made = [
            Cell((c,), {s: moved(m, spread * rng.standard_normal()) for s in range(seeds)})
            for c, m in enumerate(here)
        ]
        ci = over_seeds("missing_share", made)[(0,)].ci
        hits.append(ci[0] <= truth <= ci[1])
        alone.append(made[0].by_seed[0].ci[0] <= truth <= made[0].by_seed[0].ci[1])
    assert 0.90 <= np.mean(hits) <= 0.98
    assert np.mean(alone) < 0.85


def test_fvu_covers_its_value_on_all_documents() -> None:
    atoms, reference, moments, training = setting()

    def ratio(count: int, seed: int):  # noqa: ANN202
        coder = coder_for(documents_of(atoms, count, seed), training, moments, seed)
        return (
            by_pursuit(coder.sample, coder.code(reference).pursuits[0], ACTIVE, "energy"),
            coder.resamples.counts,
        )

    truth = ratio(2000, 7)[0].value
    found = [r.measure(counts) for r, counts in (ratio(DOCUMENTS, 1000 + 10 * i) for i in range(REPETITIONS))]
    assert 0.90 <= coverage([m.ci[0] <= truth <= m.ci[1] for m in found]) <= 0.98


def test_cka_covers_its_value_on_all_documents() -> None:
    mixing = torch.randn(16, 16, generator=generator(0))

    def cka(count: int, seed: int, permutations: int = 0):  # noqa: ANN202
        g = generator(seed)
        about = torch.randn(count, 16, generator=g).repeat_interleave(4, 0)
        x = about + torch.randn(4 * count, 16, generator=g)
        y = x @ mixing / 4 + 0.7 * torch.randn(4 * count, 16, generator=g)
        return linear_cka(x, y, np.arange(4 * count) // 4, rounds=4, permutations=permutations, seed=seed)

    truth = cka(4000, 1).value
    found = [cka(80, 100 + i) for i in range(REPETITIONS)]
    assert 0.90 <= coverage([m.ci[0] <= truth <= m.ci[1] for m in found]) <= 0.98


def test_cka_of_independent_documents_has_uniform_p() -> None:
    p = []
    for i in range(REPETITIONS):
        g = generator(i)
        x, y = (
            torch.randn(40, 12, generator=g).repeat_interleave(3, 0) + torch.randn(120, 12, generator=g)
            for _ in range(2)
        )
        p.append(linear_cka(x, y, np.arange(120) // 3, rounds=3, permutations=99, seed=i).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_matched_atoms_against_their_own_null_have_uniform_p() -> None:
    spectrum = Spectrum.of(torch.diag(torch.linspace(3, 0.1, D_MODEL, dtype=torch.float64)))
    reference, p = units(128, generator(0)), []
    for i in range(REPETITIONS):
        g = generator(1 + i)
        drawn = [best_cosines(matched_rows(spectrum, 96, g), reference) for _ in range(6)]
        p.append(mean_match(drawn[0], np.ones(len(drawn[0])), np.stack(drawn[1:]), None).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_resamples_of_null_draws_are_as_wide_as_the_draws() -> None:
    """The mean of r draws has variance s²/r; resampling them with replacement gives (r-1)/r of that, which is
    put right."""
    rng, ratios = np.random.default_rng(0), []
    for i in range(REPETITIONS):
        fvu = np.concatenate([[0.5], rng.normal(0.8, 0.02, size=5)])
        means = Resamples.draw(40, 5, 2000, i).null_means(np.tile(fvu, (2000, 1)))
        ratios.append(means.var() / (0.02**2 / 5))
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_kappa_of_the_missing_share_covers_its_value_on_all_documents() -> None:
    """The ceiling is far below the null, but not at 0: a second dictionary that lacks a quarter of the
    atoms."""
    atoms, reference, moments, training = setting()
    second = torch.cat([atoms[: 3 * ATOMS // 4], units(ATOMS // 4, generator(3))])

    def place(count: int, seed: int, draws: int = 5):  # noqa: ANN202
        deltas = documents_of(atoms, count, seed)
        coder = coder_for(deltas, training, moments, seed, draws)
        found, own, twin = (coder.code(x).structure() for x in (reference, atoms, second))
        return share_missing(found, own, 30.0, twin)

    truth = place(2000, 7, draws=40).kappa
    found = [place(DOCUMENTS, 1000 + 10 * i) for i in range(REPETITIONS)]
    assert 0.90 <= coverage([m.kappa_ci[0] <= truth <= m.kappa_ci[1] for m in found]) <= 0.98


@pytest.mark.parametrize("weighted", [False, True])
def test_kappa_of_matching_covers_its_value_over_all_latents_that_could_be(weighted: bool) -> None:
    """A latent that is far from the reference is also hard to find again: value and ceiling go together."""
    reference, spectrum = units(128, generator(0)), Spectrum.of(torch.eye(D_MODEL, dtype=torch.float64))

    def place(count: int, seed: int, draws: int):  # noqa: ANN202
        g = generator(seed)
        hard = 0.1 + 0.3 * torch.rand(count, 1, generator=g)
        true = normalize(
            reference[torch.randint(128, (count,), generator=g)]
            + 0.5 * hard * torch.randn(count, D_MODEL, generator=g),
            dim=1,
        )
        again = normalize(true + 0.3 * hard * torch.randn(count, D_MODEL, generator=g), dim=1)
        value, twin = best_cosines(true, reference), (true * again).sum(1).double().numpy()
        weights = torch.exp(torch.randn(count, generator=g)).numpy() if weighted else np.ones(count)
        _, null = matched_draws(spectrum, reference, min(count, 4000), draws=draws, seed=seed)
        return mean_match(value, weights.astype(np.float64), null, twin)

    truth = place(50_000, 1, 20).kappa
    found = [place(96, 2 + i, 5) for i in range(REPETITIONS)]
    assert 0.90 <= coverage([m.kappa_ci[0] <= truth <= m.kappa_ci[1] for m in found]) <= 0.98


def test_spectra_and_angles_cover_their_values_on_all_documents() -> None:
    """Participation ratio and principal angle."""
    g = generator(0)
    mixing, base_mixing = (
        torch.randn(D_MODEL, D_MODEL, generator=g) * torch.exp(-torch.arange(D_MODEL) / 8.0) for _ in range(2)
    )
    base_mixing = base_mixing + 0.7 * mixing

    def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        g = generator(seed)
        strength = torch.exp(0.3 * torch.randn(count, generator=g)).repeat_interleave(TOKENS)[:, None]
        source = torch.randn(count * TOKENS, D_MODEL, generator=g) * strength
        return (source @ mixing.T).numpy(), (
            torch.randn(count * TOKENS, D_MODEL, generator=g) @ base_mixing.T
        ).numpy()

    def measured(count: int, seed: int) -> dict[str, Measure]:
        (fit, base), (again, base_again) = rows(count, seed), rows(count, seed + 1)
        docs, other = np.arange(len(fit)) // TOKENS, 10_000 + np.arange(len(again)) // TOKENS
        layer = AdapterLayer(
            LayerRows(fit, again, base, base_again, docs, other), Settings(bootstrap=100, seed=seed)
        )
        return {"delta_participation_ratio": participation_ratio(layer)} | pca_angles(layer)

    names = ("delta_participation_ratio", "angle_pca_k4")
    truth = measured(3000, 7)
    found = [measured(2 * DOCUMENTS, 1000 + 10 * i) for i in range(REPETITIONS)]
    for name in names:
        hits = [m[name].ci[0] <= truth[name].value <= m[name].ci[1] for m in found]
        assert 0.90 <= coverage(hits) <= 0.985, name


def test_novel_shares_of_matched_dictionaries_have_no_small_p() -> None:
    spectrum = Spectrum.of(torch.diag(torch.linspace(3, 0.1, D_MODEL, dtype=torch.float64)))
    reference, p = units(128, generator(0)), []
    for i in range(REPETITIONS):
        _, null = matched_draws(spectrum, reference, 96, draws=6, seed=i)
        p.append(novel_share(null[0], null[1:], None).p)
    assert np.mean(np.array(p) < 0.05) <= 0.08


@pytest.mark.parametrize(("seeds", "spread", "cells"), [(2, 0.5, 6), (2, 1.5, 6), (3, 1.0, 1), (5, 1.5, 1)])
def test_the_interval_over_seeds_covers_the_mean_of_all_seeds(seeds: int, spread: float, cells: int) -> None:
    """Documents move all seeds alike; the seeds of one dictionary scatter by `spread` times what documents
    do, unlike between cells."""
    rng = np.random.default_rng(seeds)
    hits = [covered(rng, seeds, 0.02 * spread * np.sqrt(seeds), cells) for _ in range(REPETITIONS)]
    assert 0.90 <= coverage(hits) <= 0.99
