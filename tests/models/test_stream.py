"""Blocks that do not hand on one residual stream are told before anything is measured."""

from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.errors import ModelError
from deltasae_ray.models.load import backbone, blocks, empty_model, load_model
from deltasae_ray.models.stream import check_stream, check_width
from tests.tiny import D_MODEL, save_model


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_one_residual_stream_passes_with_and_without_weights(architecture: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, architecture)
    check_width(empty_model(folder), D_MODEL)
    check_stream(load_model(folder, deepest=2))


def test_a_stream_of_another_width_is_refused_by_a_plan(tiny_model: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"block 0 .*returns \(1, 4, 32\) for 4 tokens, where a residual stream of width 48 is needed",
    ):
        check_width(empty_model(tiny_model), 48)


def test_several_streams_are_refused_by_a_plan_also_where_the_pass_ends_early(tiny_model: Path) -> None:
    model = empty_model(tiny_model)
    blocks(model)[1].register_forward_hook(lambda _m, _i, out: out.unsqueeze(2).repeat(1, 1, 4, 1))  # type: ignore[operator, union-attr]
    with pytest.raises(ModelError, match=r"llama: block 1 .*returns \(1, 4, 4, 32\)"):
        check_width(model, D_MODEL)


def test_a_block_that_sees_later_positions_is_refused(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    blocks(model)[1].register_forward_hook(lambda _m, _i, out: out + out.mean(1, keepdim=True))
    with pytest.raises(ModelError, match="block 1 .*lets positions see later ones"):
        check_stream(model)


def test_a_block_that_returns_something_else_than_the_hidden_state_is_refused(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    stack: Any = backbone(model)
    forward = stack.forward

    def doubled(**arguments: Any) -> Any:
        output = forward(**arguments)
        output.hidden_states = tuple(2 * state for state in output.hidden_states)
        return output

    stack.forward = doubled
    with pytest.raises(ModelError, match="block 0 .*returns something else than transformers' hidden state"):
        check_stream(model)
