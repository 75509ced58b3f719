"""Continuing the base model from another residual stream, against hooks on plain transformers and SAELens'
own figure."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.behaviour import language_head
from deltasae_ray.models.load import load_model
from deltasae_ray.models.patching import continued, losses_beside, whole_pass
from deltasae_ray.sae.fitting import fit_dictionary
from tests.tiny import ARCHITECTURES, save_adapter, save_model

IDS = torch.cat(
    [
        torch.ones(6, 1, dtype=torch.long),
        torch.randint(3, 250, (6, 23), generator=torch.Generator().manual_seed(0)),
    ],
    1,
)
BLOCKS = {"llama": "model.layers", "gemma3": "model.layers", "gpt2": "transformer.h"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    folder = tmp_path_factory.mktemp(request.param)
    path = save_model(folder / "model", request.param)
    return (
        path,
        attach(load_model(path), {"r4": save_adapter(folder / "r4", path, request.param)}),
        request.param,
    )


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_continuing_from_the_models_own_residuals_is_its_own_pass(
    world: tuple[Path, Any, str], layer: int
) -> None:
    _, model, _ = world
    taken, last = whole_pass(model, IDS, [Hookpoint(layer)])
    assert torch.equal(continued(model, IDS, Hookpoint(layer), taken[Hookpoint(layer)]), last)
    assert torch.equal(whole_pass(model, IDS, [Hookpoint(layer)])[1], last), "the blocks must be whole again"


def test_exact_deltas_after_the_last_block_reach_the_adapters_own_output(
    world: tuple[Path, Any, str],
) -> None:
    _, model, _ = world
    adapted, wanted = whole_pass(model, IDS, [Hookpoint(3)], "r4")
    base = whole_pass(model, IDS, [Hookpoint(3)])[1]
    assert not torch.allclose(base, wanted, atol=1e-3)
    torch.testing.assert_close(continued(model, IDS, Hookpoint(3), adapted[Hookpoint(3)]), wanted)


def test_a_patched_pass_equals_a_hook_that_replaces_the_blocks_output(world: tuple[Path, Any, str]) -> None:
    path, model, architecture = world
    taken, _ = whole_pass(model, IDS, [Hookpoint(1)])
    changed = taken[Hookpoint(1)] + torch.randn(
        taken[Hookpoint(1)].shape, generator=torch.Generator().manual_seed(1)
    )
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    plain.get_submodule(f"{BLOCKS[architecture]}.1").register_forward_hook(lambda *_: changed)
    with torch.no_grad():
        logits = plain(IDS).logits
    head = language_head(model)
    got = torch.cat(
        [block.clone() for _, block in head.blocks(continued(model, IDS, Hookpoint(1), changed)[0])]
    )
    torch.testing.assert_close(got.T, logits[0], rtol=1e-4, atol=1e-4)


def test_losses_and_divergences_are_those_of_whole_logits(world: tuple[Path, Any, str]) -> None:
    _, model, _ = world
    head, g = language_head(model), torch.Generator().manual_seed(2)
    hidden, labels = 3 * torch.randn(3, 40, 32, generator=g), torch.randint(0, 320, (40,), generator=g)
    hidden[2] = hidden[0]
    log_p = torch.stack(
        [torch.cat([b.clone() for _, b in head.blocks(h)]).T.double().log_softmax(-1) for h in hidden]
    )
    ce, kl = losses_beside(head, hidden, labels)
    torch.testing.assert_close(ce, -log_p[:, torch.arange(40), labels], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kl, (log_p[0].exp() * (log_p[0] - log_p)).sum(-1), rtol=1e-5, atol=1e-5)
    assert not kl[[0, 2]].any(), "equal variants have a divergence of exactly 0"


@pytest.mark.slow
def test_recovered_loss_is_saelens_ce_score_of_an_exported_dictionary(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The same formula on activations: SAE(h) for the estimate, nothing for no delta, h for the exact one."""
    from sae_lens import SAE
    from sae_lens.evals import get_recons_loss
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activation_scaler import ActivationScaler

    model, at = load_model(tiny_model), Hookpoint(1)
    taken, last = whole_pass(model, IDS, [at])
    h = taken[at]
    dictionary = fit_dictionary(h[:, 1:].reshape(-1, 32), d_sae=64, k=8, steps=60, seed=0)
    theirs = get_recons_loss(
        SAE.load_from_disk(dictionary.save(tmp_path / "sae"), device="cpu"),
        HookedProxyLM(
            AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval(), tokenizer=None
        ),
        ActivationScaler(),
        IDS,
        compute_kl=True,
        compute_ce_loss=True,
        ignore_tokens=[1],
        hook_name="model.layers.1",
    )
    patched = torch.cat(
        [h[:, :1], dictionary.decode(dictionary.encode(h[:, 1:].reshape(-1, 32))).view_as(h[:, 1:])], 1
    )
    hidden = torch.stack(
        [last, continued(model, IDS, at, patched), continued(model, IDS, at, torch.zeros_like(h))]
    )
    ce, kl = losses_beside(language_head(model), hidden[:, :, :-1].reshape(3, -1, 32), IDS[:, 1:].reshape(-1))
    ours = ((ce[2] - ce[1]).sum() / (ce[2] - ce[0]).sum()).item()
    clean, sae, ablated = (
        theirs[f"ce_loss_{name}"].double() for name in ("without_sae", "with_sae", "with_ablation")
    )
    assert 0 < ours < 1
    assert ours == pytest.approx(((ablated - sae).sum() / (ablated - clean).sum()).item(), rel=1e-3)
    torch.testing.assert_close(
        kl[1], theirs["kl_div_with_sae"][:, :-1].reshape(-1).detach().double(), rtol=1e-3, atol=1e-4
    )
