"""The logit lens against transformers' own final norm and head."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deltasae_ray.analyses.lens.model import final_norm, logit_lens
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.behaviour import language_head
from deltasae_ray.models.load import base_of, blocks, ends_bytes, load_ends, load_model
from tests.tiny import ARCHITECTURES, D_MODEL, VOCAB, save_model


def own_norm(model: torch.nn.Module) -> torch.nn.Module:
    inner = base_of(model)
    return inner.transformer.ln_f if hasattr(inner, "transformer") else inner.model.norm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_lens_is_the_models_own_norm_and_head(architecture: str, tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path / "model", architecture))
    rows = torch.randn(300, D_MODEL, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(final_norm(model, rows), own_norm(model)(rows))
    with torch.no_grad():
        logits = base_of(model).get_output_embeddings()(
            own_norm(model)(F.normalize(rows, dim=1) * D_MODEL**0.5)
        )
    for found, own in zip(logit_lens(model, rows, tokens=5), logits.double(), strict=True):
        assert found.promoted == tuple(own.topk(5).indices.tolist())
        assert found.suppressed == tuple((-own).topk(5).indices.tolist())
        assert found.peak == pytest.approx(float((own.max() - own.mean()) / own.std(correction=0)), rel=1e-4)


def test_a_planted_direction_promotes_its_token_whatever_its_length(
    tiny_model: Path, tiny_adapters: tuple[Path, Path]
) -> None:
    model = attach(load_model(tiny_model), {"r2": tiny_adapters[0]})
    weight = base_of(model).get_output_embeddings().weight.detach()
    token = 77
    for scale in (1e-3, 1.0, 1e3):
        lens = logit_lens(model, scale * torch.stack([weight[token], -weight[token]]), tokens=1)
        assert lens[0].promoted == (token,) and lens[1].suppressed == (token,)


def test_more_tokens_than_there_are_give_all_of_them(tiny_model: Path) -> None:
    (lens,) = logit_lens(load_model(tiny_model), torch.ones(1, D_MODEL), tokens=10_000)
    assert sorted(lens.promoted) == list(range(VOCAB)) and lens.promoted == lens.suppressed[::-1]


def test_blocks_of_the_vocabulary_make_no_difference(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = load_model(tiny_model), torch.randn(8, D_MODEL, generator=torch.Generator().manual_seed(1))
    language_head(model)  # checked before its blocks are made small
    whole = logit_lens(model, rows)
    monkeypatch.setattr("deltasae_ray.models.behaviour._BLOCK", 1)
    for a, b in zip(whole, logit_lens(model, rows), strict=True):
        assert (a.promoted, a.suppressed) == (b.promoted, b.suppressed) and a.peak == pytest.approx(
            b.peak, rel=1e-5
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ends_of_a_model_read_what_all_of_it_reads_and_tell_nothing_of_what_is_left_out(
    architecture: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "model", architecture)
    rows = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(2))
    whole = logit_lens(load_model(folder), rows)
    capfd.readouterr()
    ends = load_ends(folder)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    assert logit_lens(ends, rows) == whole
    assert len(blocks(ends)) == 1 and sum(
        p.numel() * p.element_size() for p in ends.parameters()
    ) == ends_bytes(folder)
