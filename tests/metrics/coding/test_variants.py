"""Figures that come without the three largest coordinates and as a mean over tokens: known answers, and what
chance gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from deltasae_ray.analyses.divergence.figures import compare
from deltasae_ray.analyses.divergence.layer_figures import shift
from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.catalogue import VARIED, metric, split_variant
from deltasae_ray.metrics.coding.mean_change import MeanVector
from deltasae_ray.metrics.coding.monitor import Reconstruct, monitor_view
from deltasae_ray.metrics.coding.sample import flips
from deltasae_ray.metrics.coding.variants import VARIANTS
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.inputs import LayerInputs, LeafInputs, Settings
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.moments import Moments, Spectrum
from deltasae_ray.metrics.statistics import bootstrap_counts
from tests.metrics.worlds import dictionary_of, half, inputs_of, units

ENDINGS = [suffix for suffix, _, _ in VARIANTS]
TOKENS, D_MODEL, PER_DOCUMENT = 2000, 24, 20
DOCUMENT = np.arange(TOKENS) // PER_DOCUMENT
COUNTS = bootstrap_counts(TOKENS // PER_DOCUMENT, 200, np.random.default_rng(0))
SMALLER = torch.arange(3, D_MODEL)


def gaussian(seed: int, rows: int = TOKENS) -> torch.Tensor:
    return torch.randn(rows, D_MODEL, generator=torch.Generator().manual_seed(seed))


def view(
    reconstruct: Reconstruct, deltas: torch.Tensor, base: torch.Tensor | None = None
) -> dict[str, Measure]:
    moments = Moments.of(deltas)
    mean = moments.mean.float()
    flipped = flips(deltas - mean, moments.spectrum, 5, 0)
    return monitor_view(
        reconstruct,
        torch.zeros_like(deltas) if base is None else base,
        deltas,
        flipped,
        mean,
        DOCUMENT,
        COUNTS,
        SMALLER,
    )


def test_what_is_catalogued_as_varied_is_measured_in_every_variant_and_nothing_else_is() -> None:
    g = torch.Generator().manual_seed(0)
    world = half(g)
    inputs = inputs_of(world, g)
    inputs = replace(inputs, base_control=inputs.reference)
    leaf = LeafInputs(
        dictionary_of(units(64, torch.Generator().manual_seed(0)), torch.from_numpy(inputs.delta_fit))
    )
    found = compare(inputs, leaf, Settings(k=4, code_tokens=256, bootstrap=100))
    for suffix in ENDINGS[1:]:
        named = {metric(name).name for name in found if name == f"{split_variant(name)[0]}{suffix}"}
        assert named == set(VARIED), suffix
    for name, m in found.items():
        if split_variant(name)[1] and m.value is not None:
            plain = metric(name)
            assert (
                m.ci is not None
                and (m.null is not None or not plain.null)
                and (m.p is not None or plain.tail is None)
            ), name


def test_a_monitor_that_sees_the_changes_as_they_are_does_so_in_every_variant() -> None:
    found = view(lambda x: x, gaussian(0))
    for suffix in ENDINGS:
        assert found[f"monitor_r2{suffix}"].value == pytest.approx(1)


def test_a_monitor_that_sees_only_loud_tokens_sees_them_all_by_energy_and_half_by_number() -> None:
    """Every second token is 100 times as large, and is all that the monitor lets through."""
    loud = (torch.arange(TOKENS) % 2 == 0)[:, None]
    rows = unit_rows(gaussian(1, TOKENS // 2))
    deltas = torch.where(loud, 100.0, 1.0) * torch.cat(
        [rows, -rows]
    )  # of mean 0, which quiet tokens would otherwise drown in
    found = view(lambda x: x * (x.norm(dim=1, keepdim=True) > 10), deltas)
    for trimmed in ("", "_no_top3"):
        m = found[f"monitor_r2{trimmed}_token_mean"]
        assert m.value == pytest.approx(0.5, abs=0.02) and m.ci == pytest.approx((0.5, 0.5), abs=0.02)


def test_a_monitor_of_three_loud_coordinates_sees_nothing_without_them() -> None:
    scales = torch.ones(D_MODEL)
    scales[:3] = 30
    found = view(
        lambda x: torch.cat([x[:, :3], 0.1 * torch.tanh(x[:, [5]]).expand(-1, D_MODEL - 3)], 1),
        gaussian(2) * scales,
    )
    assert found["monitor_r2"].value > 0.99
    assert found["monitor_r2_no_top3"].value < 0.1


@pytest.mark.parametrize("suffix", ENDINGS)
def test_a_monitor_of_featureless_changes_is_at_chance(suffix: str) -> None:
    """Gaussian deltas are exchangeable with their flips, so whatever the monitor makes of them its p is small
    only by luck."""
    p = []
    for seed in range(12):
        atoms = normalize(gaussian(100 + seed, 48), dim=1)
        found = view(
            lambda x, atoms=atoms: torch.relu(x @ atoms.T - 1.5) @ atoms,
            gaussian(seed) * torch.linspace(2, 0.3, D_MODEL),
            2 * gaussian(50 + seed),
        )
        m = found[f"monitor_r2{suffix}"]
        assert m.value == pytest.approx(m.null, abs=0.1 * m.null)
        p.append(m.p)
    assert 0.3 < np.mean(p) < 0.7 and min(p) > 1e-3


def change(deltas: torch.Tensor, reference: torch.Tensor) -> dict[str, Measure]:
    mixing = gaussian(1000, D_MODEL).double()
    return MeanVector.of(deltas, DOCUMENT, Spectrum.of(mixing @ mixing.T), COUNTS).against(reference)


def test_changes_of_one_direction_and_many_sizes_are_all_mean_by_direction() -> None:
    """As energy, the mean of lognormal sizes holds (E s)²/E s² = exp(-1) of it; as directions they are
    one."""
    size = torch.exp(gaussian(3)[:, :1])
    deltas = size * normalize(gaussian(4, 1), dim=1)
    assert change(deltas, torch.eye(D_MODEL))["mean_share"].value == pytest.approx(
        float(size.mean() ** 2 / size.square().mean()), rel=1e-5
    )
    m = change(unit_rows(deltas), torch.eye(D_MODEL))["mean_share"]
    assert m.value == pytest.approx(1) and m.p < 0.01


def test_a_few_loud_tokens_decide_where_the_mean_points_and_not_where_most_tokens_go() -> None:
    """One token in twenty is 1000 times as large and goes where the reference does not."""
    reference = torch.eye(D_MODEL)[:2]
    deltas = 0.1 * gaussian(5) + torch.eye(D_MODEL)[0]
    deltas[::20] = 1000 * normalize(gaussian(6, 1)[:, 2:], dim=1) @ torch.eye(D_MODEL)[2:]
    plain, by_token = change(deltas, reference), change(unit_rows(deltas), reference)
    assert plain["mean_missing_share"].value is None or plain["mean_missing_share"].value > 0.8
    assert by_token["mean_missing_share"].ci[1] < 0.3


def test_directions_without_a_mean_are_at_chance() -> None:
    found = [change(unit_rows(gaussian(s)), torch.eye(D_MODEL)[:4]) for s in range(12)]
    shares = [m["mean_share"] for m in found]
    assert np.mean([m.p < 0.05 for m in shares]) <= 0.25 and np.mean(
        [m.value / m.null for m in shares]
    ) == pytest.approx(1, abs=0.3)
    assert all((m["mean_missing_share"].value is None) == (m["mean_share"].p > 0.05) for m in found)


def test_a_mean_of_unknown_direction_is_as_unexplained_as_its_flips() -> None:
    """Tokens go a direction that is exchangeable with its flips: p is uniform and the missing share about
    1."""
    found = []
    for seed in range(12):
        toward = normalize(gaussian(200 + seed, 1), dim=1)
        found.append(
            change(unit_rows(0.1 * gaussian(seed) + toward), normalize(gaussian(300 + seed, 16), dim=1))
        )
    assert np.mean([m["mean_missing_share"].value for m in found]) == pytest.approx(1, abs=0.15)
    assert min(m["mean_missing_share"].p for m in found) > 1e-3
    assert all(
        m["mean_missing_share"].ci[1] >= 1 and "the interval reaches 1" in m["mean_missing_share"].reason
        for m in found
    )


def test_a_loud_shift_of_three_coordinates_hides_one_that_the_reference_knows() -> None:
    """Without them the mean is an atom of the reference."""
    g = torch.Generator().manual_seed(7)
    known = torch.zeros(1, 64)
    known[:, 3:] = normalize(torch.randn(1, 61, generator=g), dim=1)
    rows = 3 * known + 0.05 * torch.randn(6000, 64, generator=g)
    rows[:, :3] += 20 + 5 * torch.randn(6000, 3, generator=g)
    rows *= torch.exp(0.7 * torch.randn(6000, 1, generator=g))
    base = torch.randn(6000, 64, generator=g)
    others = torch.cat([torch.zeros(63, 3), normalize(torch.randn(63, 61, generator=g), dim=1)], 1)
    docs = np.arange(6000) // 50
    fit, held = slice(0, 3000), slice(3000, 6000)
    inputs = LayerInputs(
        rows[fit].numpy(),
        rows[held].numpy(),
        base[fit].numpy(),
        base[held].numpy(),
        docs[fit],
        docs[held],
        dictionary_of(torch.cat([known, others]), base),
    )
    found = shift(Context.of(inputs, Settings(bootstrap=100)))
    for averaged in ("", "_token_mean"):
        m = found[f"mean_missing_share_no_top3{averaged}"]
        assert m.value < 0.01 and m.p < 1e-3 and m.ci is not None
    for trimmed in ("", "_no_top3"):  # tokens differ in size, and hardly in direction
        assert (
            found[f"mean_share{trimmed}"].value < 0.7 < 0.9 < found[f"mean_share{trimmed}_token_mean"].value
        )
