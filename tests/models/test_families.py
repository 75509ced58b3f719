"""Architectures beside the ones that every other test runs on: the same deltas, sites that mean what they say
or a refusal, and the lens."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deltasae_ray.analyses.lens.model import logit_lens
from deltasae_ray.errors import ModelError
from deltasae_ray.hookpoints import SITES, Hookpoint, at_sites
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import check_sites, deltas
from deltasae_ray.models.load import check_blocks, empty_model, load_ends, load_model
from deltasae_ray.models.patching import continued, whole_pass
from deltasae_ray.models.together import deltas_together
from tests.models.families import HOLD, REFUSED, UNBUILT, built, outcome
from tests.tiny import D_MODEL, FAMILIES, save_adapter, save_model

HOOKPOINTS = [Hookpoint(1), Hookpoint(2)]
SCALED = ("granite", "bloom", "gemma4_text")
"""Whose residual stream is not the sum of what attention and MLP return."""


@pytest.mark.parametrize("family", FAMILIES)
def test_deltas_are_those_of_plain_peft_and_sites_mean_what_they_say(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", family)
    adapter = save_adapter(tmp_path / "r4", folder, family)
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    model = attach(load_model(folder), {"r4": adapter})
    ours, together = (dict(f(model, ids, HOOKPOINTS, ["r4"])) for f in (deltas, deltas_together))
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter
    ).eval()
    with torch.no_grad():
        adapted = plain(ids, output_hidden_states=True).hidden_states
        with plain.disable_adapter():
            base = plain(ids, output_hidden_states=True).hidden_states
    for h in HOOKPOINTS:
        expected = adapted[h.hidden_states_index] - base[h.hidden_states_index]
        assert expected.norm() > 0.01 * base[h.hidden_states_index].norm(), (
            "the adapter must really move this model"
        )
        for found in (ours, together):
            assert (found["r4"][h] - expected).norm() <= 1e-5 * expected.norm()

    sites = at_sites([Hookpoint(2)], SITES)
    if family in SCALED:
        with pytest.raises(ModelError, match="does more than add attention and MLP outputs.*use resid_post"):
            check_sites(model, sites)
    else:
        check_sites(model, sites)
        taken = dict(deltas(model, ids, [*HOOKPOINTS, *sites], ["r4"]))
        for source in ("base", "r4"):
            stream = taken[source]
            parts = stream[Hookpoint(1)] + stream[Hookpoint(2, "attn_out")] + stream[Hookpoint(2, "mlp_out")]
            assert torch.allclose(parts, stream[Hookpoint(2)], atol=1e-4, rtol=1e-4)
    check_sites(model, HOOKPOINTS)

    for source in ("base", "r4"):  # a pass that goes on from the middle is the pass
        streams, end = whole_pass(model, ids, [Hookpoint(1)], source)
        assert torch.equal(continued(model, ids, Hookpoint(1), streams[Hookpoint(1)], source), end)

    rows = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(2))
    for end, whole in zip(
        logit_lens(load_ends(folder), rows), logit_lens(load_model(folder), rows), strict=True
    ):
        assert (end.promoted, end.suppressed) == (whole.promoted, whole.suppressed)


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    lost = {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}
    save_file(
        {k: t for k, t in weights.items() if k not in lost},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ModelError,
        match=(
            r"lacks model\.layers\.1\.mlp\.up_proj\.weight, model\.norm\.weight of what LlamaForCausalLM has"
        ),
    ):
        load_model(folder, deepest=2)
    with pytest.raises(ModelError, match=r"lacks model\.norm\.weight of what"):
        load_ends(folder)


SAMPLE = ("gpt_neo", "mpt", "falcon", "bart", "bert", "gptj", "opt", "openai-gpt", "lfm3", "rwkv")
"""Families whose configs use words of their own or whose blocks return lists, and two that are refused."""


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_holds_or_is_refused_as_the_list_says(family: str, tmp_path: Path) -> None:
    assert built(family, tmp_path) == ""
    assert outcome(tmp_path) == ("refused" if family in REFUSED else "holds")


@pytest.mark.prove
def test_every_causal_family_holds_or_is_refused_and_none_is_unknown(tmp_path: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    found: dict[str, str] = {}
    for family in KNOWN:  # an outcome that is neither is an error here
        found[family] = "unbuilt" if built(family, tmp_path / family) else outcome(tmp_path / family)
        print(family, found[family])  # noqa: T201 - the list, for the evidence
        shutil.rmtree(tmp_path / family, ignore_errors=True)
    listed = (
        dict.fromkeys(HOLD, "holds") | dict.fromkeys(REFUSED, "refused") | dict.fromkeys(UNBUILT, "unbuilt")
    )
    assert {family: found[family] for family in listed} == listed


def test_blocks_that_are_not_as_many_as_the_config_counts_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="has 4 blocks where its config counts 6 layers"):
        check_blocks(empty_model(tiny_model), 6)
