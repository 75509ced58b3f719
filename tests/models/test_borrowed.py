"""A model that a user hands over comes back as it was, and in between its state changes no figure."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import deltasae_ray as ds
from deltasae_ray.errors import AdapterError
from deltasae_ray.models.capture import adapter_active
from tests.tiny import config


@pytest.fixture
def model() -> Any:
    """A PEFT model with two adapters in the middle of training: dropout everywhere, one module set to
    evaluation by hand."""
    torch.manual_seed(0)
    dropping = config("llama")
    dropping.attention_dropout = 0.3
    base = AutoModelForCausalLM.from_config(dropping)
    lora = LoraConfig(r=3, target_modules=["q_proj", "o_proj"], lora_dropout=0.5, init_lora_weights=False)
    made = get_peft_model(base, lora, adapter_name="one")
    made.add_adapter("two", lora)
    made.train()
    made.get_base_model().model.layers[1].eval()
    next(made.get_base_model().model.layers[0].parameters()).requires_grad_(True)
    return made


def state(model: nn.Module) -> tuple[Any, ...]:
    modes = {name: module.training for name, module in model.named_modules()}
    active = {
        name: (str(m._active_adapter), m._disable_adapters)
        for name, m in model.named_modules()
        if hasattr(m, "_active_adapter")
    }
    gradients = {name: p.requires_grad for name, p in model.named_parameters()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    return (
        modes,
        active,
        gradients,
        hooks,
        str(model.active_adapter),
        model.config.use_cache,
        torch.get_rng_state().tolist(),
    )  # type: ignore[union-attr]


def changes(model: nn.Module, adapter: str) -> dict[str, torch.Tensor]:
    return {
        name: found.change
        for name, found in ds.module_deltas(model, torch.arange(3, 23).reshape(2, 10), adapter).items()
    }


def test_a_model_in_training_gives_the_figures_of_evaluation_and_stays_in_training(model: Any) -> None:
    before = state(model)
    first, second = changes(model, "two"), changes(model, "two")
    assert state(model) == before
    expected = changes(model.eval(), "two")
    assert len(expected) == 8 and all(
        torch.equal(first[n], e) and torch.equal(second[n], e) for n, e in expected.items()
    )


def test_the_state_comes_back_after_an_error_too(model: Any) -> None:
    before = state(model)
    with pytest.raises(IndexError):
        ds.module_deltas(model, torch.tensor([[10_000]]), "two")
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), adapter_active(model, "base"):
        _ = 1 / 0
    assert state(model) == before


def test_adapters_that_are_switched_off_or_merged_do_not_give_an_empty_answer(model: Any) -> None:
    expected = changes(model, "two")
    model.base_model.disable_adapter_layers()
    before = state(model)
    found = changes(model, "two")
    assert (
        found.keys() == expected.keys()
        and all(torch.equal(found[n], e) for n, e in expected.items())
        and state(model) == before
    )
    model.base_model.enable_adapter_layers()
    model.merge_adapter(["one"])
    with pytest.raises(AdapterError, match=r"\['one'\] are merged.*unmerge_adapter"):
        changes(model, "two")


def test_a_bias_beside_b_is_no_product_and_is_not_left_out_silently(tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(AdapterError, match="no linear module by plain LoRA"):
        changes(PeftModel(base, lora, adapter_name="biased"), "biased")
