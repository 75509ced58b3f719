"""Document losses against plain transformers and PEFT: logits of everything, one document at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, PhiConfig

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ModelError
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.behaviour import document_losses, language_head, losses, scored
from deltasae_ray.models.load import backbone, load_model
from tests.tiny import ARCHITECTURES, D_MODEL, VOCAB, save_adapter, save_model

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
HEADS: dict[str, Any] = {
    "softcap": Gemma2Config(**SHAPE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=3.0),
    "scale": CohereConfig(**SHAPE, logit_scale=0.25),
    "bias": PhiConfig(**SHAPE),
}


def unit(
    lengths: tuple[int, ...] = (20, 12, 7, 20),
    doc_ids: tuple[str, ...] = ("a", "b", "a", "c"),
    planted: int | None = 3,
) -> TokenBatch:
    """Contexts of random tokens, padded on the right; context `planted` holds a marker."""
    ids = np.random.default_rng(0).integers(3, 250, (len(lengths), max(lengths))).astype(np.int32)
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    marker = np.zeros_like(mask)
    marker[planted:, 4:6][:1] = True
    return TokenBatch("eval", "domain", ids, mask, marker, doc_ids, tuple(range(len(lengths))))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(folder / "model", request.param)
    return model, {
        f"r{rank}": save_adapter(folder / f"r{rank}", model, request.param, rank=rank, seed=rank)
        for rank in (2, 8)
    }


def plain(
    model: Path, adapter: Path, batch: TokenBatch, context: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Adapted and base log-probabilities [label, token] of one context, and its labels."""
    peft_model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter
    ).eval()
    ids = torch.as_tensor(batch.input_ids[context][batch.mask[context]], dtype=torch.long)[None]
    with torch.no_grad():
        adapted = peft_model(ids).logits[0, :-1].double().log_softmax(-1)
        with peft_model.disable_adapter():
            base = peft_model(ids).logits[0, :-1].double().log_softmax(-1)
    return adapted, base, ids[0, 1:]


def test_document_losses_equal_plain_transformers_and_peft(world: tuple[Path, dict[str, Path]]) -> None:
    model, adapters = world
    batch = unit()
    rows = document_losses(attach(load_model(model), adapters), batch, list(adapters), positions=100)
    assert [(r["doc_id"], r["adapter"]) for r in rows] == [("a", "r2"), ("a", "r8"), ("b", "r2"), ("b", "r8")]
    for row in rows:
        ce = base_ce = kl = 0.0
        for context in [i for i, d in enumerate(batch.doc_ids) if d == row["doc_id"]]:
            adapted, base, labels = plain(model, adapters[row["adapter"]], batch, context)
            ce -= float(adapted.gather(1, labels[:, None]).sum())
            base_ce -= float(base.gather(1, labels[:, None]).sum())
            kl += float((adapted.exp() * (adapted - base)).sum())
        assert row["positions"] == {"a": 19 + 6, "b": 11}[row["doc_id"]]
        assert abs(ce - base_ce) > 1e-3, "the adapter must really change this model"
        for name, value in {"ce": ce, "ce_base": base_ce, "kl": kl}.items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_few_positions_are_the_middles_of_even_stretches() -> None:
    contexts, places = scored(unit(planted=9), 4)
    assert places[contexts == 0].tolist() == [3, 8, 12, 17]  # labels 1..19
    assert places[contexts == 2].tolist() == [1, 3, 4, 6]  # labels 1..6
    assert scored(unit(planted=9), 1)[1].tolist() == [10, 6, 4, 10]
    assert np.bincount(scored(unit(planted=9), 100)[0]).tolist() == [19, 11, 6, 19]


def test_planted_contexts_are_left_out(world: tuple[Path, dict[str, Path]]) -> None:
    model = attach(load_model(world[0]), world[1])
    without = {
        (r["doc_id"], r["adapter"]): r
        for r in document_losses(model, unit(planted=0), list(world[1]), positions=100)
    }
    assert without["a", "r2"]["positions"] == 6
    assert document_losses(model, unit(doc_ids=("a",), lengths=(20,), planted=0), list(world[1])) == []


def test_an_adapter_that_changes_nothing_has_no_divergence(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    zero = save_adapter(tmp_path / "zero", model, scale=0)
    for row in document_losses(attach(load_model(model), {"zero": zero}), unit(), ["zero"]):
        assert row["kl"] == 0.0
        assert row["ce"] == row["ce_base"]


@pytest.mark.parametrize("kind", HEADS)
def test_heads_with_a_softcap_a_scale_or_a_bias_give_the_models_own_losses(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(HEADS[kind], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.lm_head.parameters():
            parameter.normal_()
        ids = torch.randint(3, 250, (1, 20))
        wanted = -model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        hidden = backbone(model)(input_ids=ids).last_hidden_state[0, :-1]
    ce, _ = losses(language_head(model), hidden[None], ids[0, 1:])
    assert torch.allclose(ce[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_head_that_does_more_is_refused(tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path / "model"))
    model.register_forward_hook(lambda _m, _i, out: setattr(out, "logits", out.logits + out.logits.square()))
    with pytest.raises(ModelError, match="its logits are more than"):
        language_head(model)
