"""The reference that comes with the package: found by its name, whole, small, and of the model it says."""

import re

import pytest
import torch

from deltasae_ray.errors import DictionaryError
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.source import GEMMA_270M_LABEL, resolve_model
from deltasae_ray.sae.made_for import BaseModel
from deltasae_ray.sae.saelens import SHIPPED, load_reference, resolve_references
from deltasae_ray.sae.siblings import siblings

LAYERS = (9, 12, 15)


def test_it_opens_by_its_name_with_two_siblings_a_layer() -> None:
    base = BaseModel(GEMMA_270M_LABEL, "", "gemma3_text", 640)
    for layer, reference in resolve_references("builtin:gemma3-270m", LAYERS).items():
        opened = [load_reference(each, base) for each in (reference, *siblings(reference))]
        assert len(opened) == 3
        for dictionary in opened:
            assert dictionary.W_dec.shape == (1024, 640) and dictionary.W_dec.dtype == torch.float32
            assert dictionary.meta["hookpoint"] == f"blocks.{layer}.hook_resid_post"
            # Stored in half precision: a unit vector to three digits.
            torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(1024), atol=1e-3, rtol=0)
        assert {d.meta["documents"] for d in opened} == {"1of3", "2of3", "3of3"}


def test_a_name_or_a_layer_that_does_not_come_with_the_package_is_refused() -> None:
    with pytest.raises(DictionaryError, match=re.escape("known: ['builtin:gemma3-270m']")):
        resolve_references("builtin:gemma-3-270m", LAYERS)
    with pytest.raises(DictionaryError, match="0 folders for layer 5"):
        resolve_references("builtin:gemma3-270m", (5,))


@pytest.mark.demo
def test_it_was_made_on_the_weights_that_come_with_the_package() -> None:
    digest = resolve_model(ModelConfig()).digest
    base = BaseModel(GEMMA_270M_LABEL, "", "gemma3_text", 640)
    for reference in resolve_references("builtin:gemma3-270m", LAYERS).values():
        assert load_reference(reference, base).meta["model_digest"] == digest
    assert digest in (SHIPPED / "gemma3-270m/README.md").read_text()


def test_it_takes_at_most_24_mb() -> None:
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) <= 24e6
