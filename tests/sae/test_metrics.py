"""Held-out figures against their definitions."""

import math

import numpy as np
import pytest
import torch

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae import threads as threads_module
from deltasae_ray.sae.metrics import RATE_EDGES, effective_number, fvu, held_out
from deltasae_ray.sae.threads import _quota, cores, threads
from tests.sae.test_dictionary import made


def test_fvu_is_one_for_the_mean_and_zero_for_the_rows_themselves() -> None:
    x, mean = torch.randn(50, 6), torch.randn(6)
    assert fvu(x, mean.expand_as(x), mean) == 1.0
    assert fvu(x, x, mean) == 0.0
    with pytest.raises(DictionaryError, match="variance"):
        fvu(mean.expand(5, 6), torch.zeros(5, 6), mean)


def test_effective_number_counts_equal_weights() -> None:
    assert effective_number(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_number(torch.tensor([3.0, 1.0])) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )
    assert effective_number(torch.zeros(4)) == 0.0


def test_held_out_figures_follow_their_definitions_in_any_number_of_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dictionary = made("jumprelu")
    x = torch.randn(101, 24, generator=torch.Generator().manual_seed(3)) + dictionary.b_dec
    z = dictionary.encode(x)
    whole = held_out(dictionary, x)
    monkeypatch.setattr(
        type(dictionary),
        "passes",
        lambda self, rows: ((r, self.encode(r)) for r in torch.as_tensor(rows).split(7)),
    )
    split = held_out(dictionary, x.numpy())
    assert (
        whole.rates == split.rates
        and sum(whole.rates) == dictionary.d_sae
        and len(whole.rates) == len(RATE_EDGES)
    )
    assert whole.figures() == pytest.approx(split.figures(), rel=1e-6)  # fp32 products round by the block
    assert whole.fvu == pytest.approx(fvu(x, dictionary.decode(z), dictionary.mean), rel=1e-6)
    assert whole.l0 == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert whole.alive == pytest.approx(50 / 60)
    assert whole.effective_latents == pytest.approx(effective_number(z.square().sum(0)), rel=1e-5)
    assert whole.effective_firing == pytest.approx(effective_number((z > 0).double().sum(0)), rel=1e-9)
    assert whole.rates[0] >= int((z.sum(0) == 0).sum())


def test_no_held_out_rows_is_an_error() -> None:
    with pytest.raises(DictionaryError, match="no held-out rows"):
        held_out(made(), np.zeros((0, 24), np.float32))


def test_threads_are_set_and_given_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("text", "expected"), [("150000 100000", 1), ("400000 100000", 4), ("max 100000", None), ("", None)]
)
def test_the_quota_of_a_container_limits_the_cores(
    text: str, expected: int | None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert _quota(tmp_path) == expected
    monkeypatch.setattr(threads_module, "_quota", lambda: 1)
    assert cores() == 1
