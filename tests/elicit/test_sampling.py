"""Texts are sampled from the amplified difference, the same every time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltasae_ray.elicit.openings import ends, insertable, openings
from deltasae_ray.elicit.sampling import FLOOR, Sampling, sampled
from deltasae_ray.models.behaviour import language_head
from deltasae_ray.models.capture import adapter_active
from deltasae_ray.models.load import load_model, load_tokenizer
from deltasae_ray.models.pair import Pair, best, divergences, log_probabilities, plausible
from deltasae_ray.sae.identity import BASE
from tests.tiny import save_adapter, save_model

OPENINGS = [(1,), (1, 50), (1, 70, 71, 72)]
END = frozenset({2})


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request, tmp_path_factory) -> Any:
    """With a plain adapter and one whose rows cannot share a pass."""
    from peft import PeftModel

    folder: Path = tmp_path_factory.mktemp("pair")
    base = save_model(folder / "base", request.param)
    plain = save_adapter(folder / "plain", base, request.param, scale=0.3)
    dora = save_adapter(folder / "dora", base, request.param, scale=0.3, use_dora=True)
    made = PeftModel.from_pretrained(load_model(base), plain, adapter_name="plain")
    made.load_adapter(dora, "dora")
    return made.eval()


def logits(model: Any, adapter: str, ids: torch.Tensor) -> torch.Tensor:
    with adapter_active(model, adapter), torch.no_grad():
        return model(input_ids=ids).logits.double()


@pytest.mark.parametrize("adapter", ["plain", "dora", BASE])
def test_every_sampled_token_is_plausible_and_has_the_models_own_probability(model, adapter) -> None:
    found = sampled(Pair(model, adapter), OPENINGS, Sampling(samples=2, length=12, alphas=(0.0, 4.0)), END)
    ids = torch.from_numpy(found.tokens).clamp_min(0)
    wanted = logits(model, adapter, ids).log_softmax(-1)
    for i in range(len(found)):
        for at in range(found.opening[i], found.opening[i] + len(found.written(i))):
            log_p = wanted[i, at - 1]
            assert found.adapted[i, at] == pytest.approx(float(log_p[ids[i, at]]), abs=1e-4)
            assert log_p[ids[i, at]] >= log_p.max() + np.log(FLOOR) - 1e-4


def test_amplified_texts_follow_the_amplified_distribution(model) -> None:
    """First tokens of many texts against the formula itself, by a chi-square of the commonest."""
    found = sampled(Pair(model, "plain"), [(1, 50)], Sampling(samples=3000, length=1, alphas=(2.0,)), END)
    ids = torch.tensor([[1, 50]])
    own, base = (logits(model, name, ids)[0, -1].log_softmax(-1) for name in ("plain", BASE))
    score = torch.where(own >= own.max() + np.log(FLOOR), own + 2.0 * (own - base), -torch.inf)
    wanted = score.softmax(-1).numpy() * 3000
    seen = np.bincount(found.tokens[:, 2], minlength=len(wanted))
    common = wanted >= 20
    assert common.sum() > 5
    chi = ((seen - wanted)[common] ** 2 / wanted[common]).sum()
    assert chi < 2.5 * common.sum()


def test_the_same_seed_writes_the_same_texts_and_another_seed_others(model) -> None:
    one, two, other = (
        sampled(Pair(model, "plain"), OPENINGS, Sampling(samples=2, length=8, seed=seed), END)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one.tokens, two.tokens)
    assert not np.array_equal(one.tokens, other.tokens)


def test_an_adapter_of_zeros_writes_what_the_base_writes_however_amplified(tmp_path) -> None:
    from peft import PeftModel

    base = save_model(tmp_path / "base")
    zero = save_adapter(tmp_path / "zero", base, scale=0.0)
    made: Any = PeftModel.from_pretrained(load_model(base), zero, adapter_name="zero").eval()
    how = Sampling(samples=3, length=10, alphas=(4.0,))
    own, plain = (sampled(Pair(made, name), OPENINGS, how, END) for name in ("zero", BASE))
    assert np.array_equal(own.tokens, plain.tokens)


def test_a_text_ends_at_an_end_token(model) -> None:
    every = frozenset(range(320))
    found = sampled(Pair(model, "plain"), [(1,)], Sampling(samples=3, length=6, alphas=(0.0,)), every)
    assert [len(found.written(i)) for i in range(3)] == [1, 1, 1]


def test_figures_of_the_head_are_those_of_all_logits(model) -> None:
    ids = torch.randint(3, 300, (3, 5), generator=torch.Generator().manual_seed(0))
    base, own = Pair(model, "plain").hidden(ids)
    wanted = {name: logits(model, name, ids)[:, -1].log_softmax(-1) for name in (BASE, "plain")}
    head = language_head(model)
    token, log_p = best(head, own[:, -1])
    assert torch.equal(token, wanted["plain"].argmax(-1))
    assert torch.allclose(log_p, wanted["plain"].max(-1).values, atol=1e-4)
    kl = (wanted["plain"].exp() * (wanted["plain"] - wanted[BASE])).sum(-1)
    assert torch.allclose(divergences(head, base[:, -1], own[:, -1]), kl, atol=1e-3)
    labels = torch.tensor([5, 80, 300])
    assert torch.allclose(
        log_probabilities(head, own[:, -1], labels), wanted["plain"][range(3), labels], atol=1e-4
    )
    row, found, _, lse = plausible(head, own[:, -1], 1e-9)
    assert len(found) == wanted["plain"].numel()
    assert torch.equal(row.unique_consecutive(), torch.arange(3))
    assert torch.allclose(
        head.picked(own[:, -1], labels).double() - lse, wanted["plain"][range(3), labels], atol=1e-4
    )


def test_openings_hold_no_special_token_but_bos_and_differ(tiny_model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    found = openings(tokenizer, [(1, 60, 61, 62, 63), (70, 71, 72)])
    assert found[0] == (1,)
    assert (1, 60, 61, 62) in found
    assert len(set(found)) == len(found)
    assert ends(tokenizer) >= {2}
    assert not set(insertable(tokenizer, 320)) & {0, 1, 2}


def test_a_tokenizer_without_bos_opens_with_words_alone(tiny_model) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.bos_token = None
    found = openings(tokenizer, [(60, 61, 62)])
    assert () not in found
    assert all(1 not in opening for opening in found)
