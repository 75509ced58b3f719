"""What the base writes under a direction: its own greedy text where nothing is added, a token over and over
where the direction speaks for it, and nothing after a token that ends texts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deltasae_ray.analyses.lens.steering import steered_texts, usual_length
from deltasae_ray.batches import TokenBatch
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.load import load_model
from tests.tiny import VOCAB

OPENING = (1, 7, 9)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    return load_model(tiny_model)


def test_a_direction_of_no_length_leaves_the_models_own_greedy_text(model: nn.Module) -> None:
    none = torch.zeros(2, model.config.hidden_size)
    written = steered_texts(model, Hookpoint(1), none, OPENING, frozenset(), tokens=6)
    own = model.generate(torch.tensor([OPENING]), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert written == [tuple(own[0, len(OPENING) :].tolist())] * 2


def test_each_row_writes_under_its_own_direction(model: nn.Module) -> None:
    rows = model.get_output_embeddings().weight[[17, 23]].detach()
    last = Hookpoint(model.config.num_hidden_layers - 1)
    texts = steered_texts(model, last, 1e4 * rows / rows.norm(dim=1, keepdim=True), OPENING, frozenset(), 5)
    assert [set(text) for text in texts] == [{17}, {23}] and [len(text) for text in texts] == [5, 5]
    assert steered_texts(model, last, 1e4 * rows[:1], OPENING, frozenset({17}), 5) == [()]


def test_the_usual_length_leaves_out_bos_and_what_does_not_count(model: nn.Module) -> None:
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 8))
    mask = np.ones((2, 8), bool)
    mask[1, 5:] = False
    unit = TokenBatch("eval", "domain", ids, mask, ~mask, ("a", "b"), (0, 0))
    with torch.no_grad():
        states = model.model(torch.from_numpy(unit.input_ids), output_hidden_states=True).hidden_states[2]
    kept = torch.from_numpy(unit.mask).clone()
    kept[:, 0] = False
    assert usual_length(model, unit, Hookpoint(1)) == pytest.approx(float(states[kept].norm(dim=1).median()))
