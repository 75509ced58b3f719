"""The names that libraries give to a place, and the one spelling of each."""

import pytest

from deltasae_ray.errors import HookpointError
from deltasae_ray.hookpoints import Hookpoint, place_of


@pytest.mark.parametrize("name", [
    "model.layers.12", "transformer.h.12", "gpt_neox.layers.12", "blocks.12.hook_resid_post", "blocks.12",
    "layers.12", "h.12",
    "model.language_model.layers.12", "language_model.model.layers.12", "model.decoder.layers.12",
    "transformer.blocks.12",
    "backbone.layers.12", "model.layers.12.output", "model.layers.13.input", "blocks.13.hook_resid_pre",
    "resid_post_layer_12",
    "resid_pre_layer_13", "model.layers.012",
])  # fmt: skip
def test_the_output_of_a_block_is_one_place_however_it_is_called(name: str) -> None:
    assert place_of(name) == "blocks.12.hook_resid_post" and Hookpoint.parse(name) == Hookpoint(12)


@pytest.mark.parametrize("name", [
    "model.layers.12.mlp", "blocks.12.attn.hook_z", "blocks.12.hook_mlp_out", "blocks.12.hook_resid_mid",
    "transformer.h.12.ln_1",
    "vision_tower.encoder.layers.12", "model.visual.blocks.12", "model.layers.12.self_attn",
    "blocks.12.hook_resid_post.0", "",
])  # fmt: skip
def test_other_places_keep_their_names(name: str) -> None:
    assert place_of(name) == name


def test_input_and_output_of_a_block_are_two_places() -> None:
    assert place_of("blocks.12.hook_resid_pre") == place_of("model.layers.11") != place_of("model.layers.12")
    assert (
        place_of("blocks.0.hook_resid_pre") == place_of("model.layers.0.input") == "blocks.0.hook_resid_pre"
    )  # the embedding


@pytest.mark.parametrize(
    "value", ["²", "12.0", "", "-1", "vision_tower.layers.3", "9" * 5000, True, 1.5, None, [1]]
)
def test_what_names_no_place_is_a_typed_error(value: object) -> None:
    with pytest.raises(HookpointError):
        Hookpoint.parse(value)  # type: ignore[arg-type]
