"""One cell of a study, from rows of two texts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deltasae_ray.analyses.visibility.figures import (
    CellDictionaries,
    CellRows,
    CellVisibility,
    base_side,
    judge_cell,
)
from deltasae_ray.analyses.visibility.layer_figures import Sight, disagreement
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.sae.dictionary import Dictionary

D_MODEL, ATOMS, ACTIVE, ROWS, FIT = 48, 48, 3, 4000, 2400
SETTINGS = Settings(k=ACTIVE, code_tokens=256, bootstrap=100)
G = torch.Generator().manual_seed(0)


def units(rows: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, D_MODEL, generator=G), dim=1)


def near(rows: torch.Tensor) -> Dictionary:
    """A dictionary of nearly these rows, as another seed would find."""
    moved, ones = (
        F.normalize(rows + 0.02 * torch.randn(rows.shape, generator=G), dim=1),
        torch.ones(len(rows)),
    )
    return Dictionary(
        moved.T.contiguous(), moved, 0 * ones, torch.zeros(D_MODEL), "topk", ACTIVE, 0.1 * ones, ones
    )


def codes(rows: int, among: int) -> torch.Tensor:
    chosen = torch.rand(rows, among, generator=G).topk(ACTIVE, 1).indices
    return torch.zeros(rows, among).scatter_(1, chosen, 0.5 + torch.rand(rows, ACTIVE, generator=G))


@pytest.fixture(scope="module")
def cell() -> tuple[CellRows, CellDictionaries]:
    """The first text is made of features that the reference lacks, the second of some that it has."""
    base, own = units(ATOMS), units(ATOMS // 2)
    atoms = torch.cat([base[: ATOMS // 2], own])
    texts = np.where(np.arange(ROWS) // 40 % 2, "kjv", "domain")
    known = torch.from_numpy(texts == "kjv").float()[:, None]
    drawn = codes(ROWS, ATOMS // 2)
    deltas = torch.cat([known * drawn, (1 - known) * drawn], 1) @ atoms
    deltas += 0.02 * torch.randn(ROWS, D_MODEL, generator=G)
    rows = codes(ROWS, ATOMS) @ base + 0.02 * torch.randn(ROWS, D_MODEL, generator=G)
    docs = np.arange(ROWS) // 40
    made = CellRows(
        deltas[:FIT].numpy(),
        deltas[FIT:].numpy(),
        rows[:FIT].numpy(),
        rows[FIT:].numpy(),
        docs[:FIT],
        docs[FIT:],
        tokens=np.arange(ROWS - FIT) % 50,
        positions=np.arange(ROWS - FIT) % 40,
        corpora=texts[FIT:],
        fit_corpora=texts[:FIT],
        texts=("domain", "kjv"),
    )
    return made, CellDictionaries(near(atoms), [near(atoms)], near(base), [near(base) for _ in range(3)])


@pytest.fixture(scope="module")
def found(cell: tuple[CellRows, CellDictionaries]) -> CellVisibility:
    return judge_cell(*cell, SETTINGS)


def test_texts_that_bring_out_other_latents_are_not_pooled(found: CellVisibility) -> None:
    first, second = found.texts
    assert first.counts.not_visible_share().value == pytest.approx(1, abs=0.1)
    assert second.counts.not_visible_share().value == pytest.approx(0, abs=0.1)
    assert disagreement(found) == ("domain", "kjv")
    assert Sight(found).judged_on == ("domain", first.counts)


def test_the_missing_share_of_a_text_is_its_own(found: CellVisibility) -> None:
    first, second = (text.missing.value for text in found.texts)
    assert first is not None and second is not None
    assert first > 0.8 and second < 0.2


def test_a_change_made_of_base_latents_is_hardly_missed(found: CellVisibility) -> None:
    assert found.planted.value is not None and found.planted.value < 0.2


def test_what_is_not_asked_is_not_measured_and_a_shared_base_changes_no_answer(
    cell: tuple[CellRows, CellDictionaries], found: CellVisibility
) -> None:
    side = base_side(*cell, SETTINGS)
    latents = judge_cell(*cell, SETTINGS, "latents", side=side)
    assert (
        latents.answer == found.answer and latents.pooled.value is None and "largest" in latents.pooled.reason
    )
    brief = judge_cell(*cell, SETTINGS, "random", side=side)
    assert brief.counts.not_visible == found.counts.not_visible and brief.texts == ()
    assert brief.random.keys() == {"missing_share", "max_cosine"} and not found.random
    missing, matched = brief.random["missing_share"], brief.random["max_cosine"]
    assert missing.value is not None and 0.2 < missing.value < 0.9 and missing.null == 1, "half is not there"
    assert matched.value is not None and matched.null is not None and matched.value > matched.null + 0.2
