"""Over 200 planted repetitions, 95 % intervals hold the truth 90-98 % of the time, and null p-values are uniform."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from deltasae_ray.divergence.cka import linear_cka
from deltasae_ray.divergence.coding import Resamples
from deltasae_ray.divergence.matching import best_cosines, max_cosine
from deltasae_ray.divergence.missing import Coder, make_coder, share_missing
from deltasae_ray.divergence.moments import Moments, Spectrum, matched_rows
from deltasae_ray.divergence.reconstruction import by_pursuit
from deltasae_ray.divergence.statistics import welch_p
from tests.divergence.worlds import ACTIVE, ATOMS, D_MODEL, sparse, units

REPETITIONS, DOCUMENTS, TOKENS = 200, 60, 20
pytestmark = pytest.mark.prove


def coverage(hits: list[bool]) -> float:
    assert len(hits) == REPETITIONS
    return float(np.mean(hits))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def documents_of(atoms: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """[count * TOKENS, D_MODEL]: documents differ in which atoms they prefer and in how strongly they change."""
    rows = sparse(atoms, count * TOKENS, ACTIVE, generator(seed))
    strength = torch.exp(0.3 * torch.randn(count, generator=generator(seed + 1))).repeat_interleave(TOKENS)
    return rows * strength[:, None]


def test_max_cosine_covers_the_mean_over_all_latents_that_could_be() -> None:
    reference = units(128, generator(0))

    def latents(count: int, seed: int) -> torch.Tensor:
        g = generator(seed)
        return normalize(reference[torch.randint(128, (count,), generator=g)] + 0.12 * torch.randn(count, D_MODEL, generator=g), dim=1)

    truth = max_cosine(latents(100_000, 1), reference).value
    found = [max_cosine(latents(64, 2 + i), reference) for i in range(REPETITIONS)]
    assert 0.90 <= coverage([m.ci[0] <= truth <= m.ci[1] for m in found]) <= 0.98


def setting() -> tuple[torch.Tensor, torch.Tensor, Moments, torch.Tensor]:
    atoms = units(ATOMS, generator(0))
    training = documents_of(atoms, 500, 1)
    return atoms, torch.cat([atoms[: ATOMS // 2], units(ATOMS // 2, generator(2))]), Moments.of(training), training


def coder_for(deltas: torch.Tensor, training: torch.Tensor, moments: Moments, seed: int) -> Coder:
    docs = np.arange(len(deltas)) // TOKENS
    return make_coder(deltas, training, docs, moments, k=ACTIVE, draws=5, bootstrap=400, max_tokens=len(deltas), seed=seed)


def test_the_missing_share_covers_its_value_on_all_documents() -> None:
    atoms, reference, moments, training = setting()

    def share(count: int, seed: int, draws: int = 5):  # noqa: ANN202
        deltas = documents_of(atoms, count, seed)
        docs = np.arange(len(deltas)) // TOKENS
        coder = make_coder(deltas, training, docs, moments, k=ACTIVE, draws=draws, bootstrap=400, max_tokens=len(deltas), seed=seed)
        return share_missing(coder.structure(coder.code(reference)), coder.structure(coder.code(atoms)), 30.0)

    truth = share(2000, 7, draws=40).value
    found = [share(DOCUMENTS, 1000 + 10 * i) for i in range(REPETITIONS)]
    assert 0.90 <= coverage([m.ci[0] <= truth <= m.ci[1] for m in found]) <= 0.98


def test_fvu_covers_its_value_on_all_documents() -> None:
    atoms, reference, moments, training = setting()

    def ratio(count: int, seed: int):  # noqa: ANN202
        coder = coder_for(documents_of(atoms, count, seed), training, moments, seed)
        return by_pursuit(coder.sample, coder.code(reference).pursuits[0], ACTIVE, "energy"), coder.resamples.counts

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
        x, y = (torch.randn(40, 12, generator=g).repeat_interleave(3, 0) + torch.randn(120, 12, generator=g) for _ in range(2))
        p.append(linear_cka(x, y, np.arange(120) // 3, rounds=3, permutations=99, seed=i).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_matched_atoms_against_their_own_null_have_uniform_p() -> None:
    spectrum = Spectrum.of(torch.diag(torch.linspace(3, 0.1, D_MODEL, dtype=torch.float64)))
    reference, p = units(128, generator(0)), []
    for i in range(REPETITIONS):
        g = generator(1 + i)
        drawn = [best_cosines(matched_rows(spectrum, 96, g), reference) for _ in range(6)]
        p.append(welch_p(drawn[0], np.concatenate(drawn[1:]), "greater"))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_resamples_of_null_draws_are_as_wide_as_the_draws() -> None:
    """The mean of r draws has variance s²/r; resampling them with replacement gives (r-1)/r of that, which is put right."""
    rng, ratios = np.random.default_rng(0), []
    for i in range(REPETITIONS):
        fvu = np.concatenate([[0.5], rng.normal(0.8, 0.02, size=5)])
        means = Resamples.draw(40, 5, 2000, i).null_means(np.tile(fvu, (2000, 1)))
        ratios.append(means.var() / (0.02**2 / 5))
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
