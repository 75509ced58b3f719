"""Training without Ray: it learns, it stops when it should, and a resumed run ends with the bytes of an
undisturbed one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.adapt.lora import check_targets
from deltasae_ray.adapt.text import split_text
from deltasae_ray.adapt.trainer import WARMUP_STEPS, LoraTrainer
from deltasae_ray.errors import AdapterError, ConfigError
from deltasae_ray.models.adapter_check import check_adapter
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, content_digest
from deltasae_ray.models.load import backbone, empty_model, load_model
from tests.adapt.worlds import config, contexts
from tests.tiny import ARCHITECTURES, save_model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


def trainer(folder: Path, cfg: AdaptConfig, *, seed: int = 0, learnable: bool = True) -> LoraTrainer:
    return LoraTrainer(
        load_model(folder),
        split_text(contexts(learnable=learnable), cfg.batch_contexts),
        cfg,
        rank=4,
        seed=seed,
    )


def run(made: LoraTrainer) -> LoraTrainer:
    while not made.progress.done:
        made.advance()
    return made


def files(made: LoraTrainer, folder: Path) -> tuple[bytes, bytes]:
    folder.mkdir()
    made.write_adapter(folder, "tiny")
    return (folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_bytes()


def test_it_ends_when_the_held_out_gain_is_demonstrated(world: tuple[str, Path]) -> None:
    cfg = config(world[0], max_tokens=20_000, lr=3e-4)
    facts = run(trainer(world[1], cfg)).facts()
    assert facts["demonstrated"]
    assert facts["gain"] > 5 * facts["gain_se"] > 0
    assert facts["tokens"] < 20_000
    assert facts["curve"][0] == facts["curve"][0] | {"step": 0, "train_ce": None, "gain": 0.0}
    assert facts["curve"][-1]["held_out_ce"] < facts["curve"][0]["held_out_ce"]
    json.dumps(facts, allow_nan=False)


def test_it_ends_at_the_token_cap_and_says_that_nothing_was_demonstrated(world: tuple[str, Path]) -> None:
    made = run(trainer(world[1], config(world[0], max_tokens=300), learnable=False))
    assert not made.facts()["demonstrated"]
    assert 250 < made.progress.tokens <= 300
    assert made.facts()["curve"][-1]["step"] == made.progress.step, (
        "the last look is at the adapter that is kept"
    )


def test_a_resumed_run_ends_with_the_bytes_of_an_undisturbed_one(
    world: tuple[str, Path], tmp_path: Path
) -> None:
    cfg = config(world[0], dropout=0.2, stop_at_se=1000.0)
    calm = run(trainer(world[1], cfg))
    wanted = files(calm, tmp_path / "calm")
    assert calm.progress.step > 10
    for step in (
        1,
        4,
        7,
        calm.progress.step,
    ):  # 4: right after a look; the last: killed before the adapter was written
        first = trainer(world[1], cfg)
        for _ in range(step):
            first.advance()
        (tmp_path / f"checkpoint-{step}").mkdir()
        first.save(tmp_path / f"checkpoint-{step}")
        torch.rand(3)  # a fresh process has another global random state
        second = trainer(world[1], cfg)
        second.load(tmp_path / f"checkpoint-{step}")
        run(second)
        assert files(second, tmp_path / f"resumed-{step}") == wanted
        assert second.progress.curve == calm.progress.curve


def test_dropout_and_start_follow_the_seed(world: tuple[str, Path], tmp_path: Path) -> None:
    cfg = config(world[0], dropout=0.2, max_tokens=200)
    once, again, other = (
        files(run(trainer(world[1], cfg, seed=s)), tmp_path / name)
        for s, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    undropped = files(run(trainer(world[1], replace(cfg, dropout=0.0))), tmp_path / "d")
    assert once == again
    assert len({once[0], other[0], undropped[0]}) == 3


def test_training_leaves_the_global_random_state_and_the_base_alone(world: tuple[str, Path]) -> None:
    before = torch.get_rng_state()
    made = trainer(world[1], config(world[0], dropout=0.2, max_tokens=100))
    base = {n: p.clone() for n, p in made.model.named_parameters() if not p.requires_grad}
    run(made)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, base[n]) for n, p in made.model.named_parameters() if n in base)


def test_plain_peft_opens_the_adapter_and_gives_the_trained_models_output(
    world: tuple[str, Path], tmp_path: Path
) -> None:
    made = run(trainer(world[1], config(world[0])))
    made.write_adapter(tmp_path, "tiny")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world[1], dtype=torch.float32), tmp_path
    ).eval()
    ids = torch.randint(3, 250, (2, 20))
    with torch.no_grad():
        assert torch.equal(
            backbone(plain)(input_ids=ids).last_hidden_state,
            backbone(made.model)(input_ids=ids).last_hidden_state,
        )
    check_adapter(tmp_path, empty_model(world[1]), base="tiny")
    content_digest(tmp_path)


def test_the_adapters_config_names_no_path_of_this_machine(world: tuple[str, Path], tmp_path: Path) -> None:
    run(trainer(world[1], config(world[0], max_tokens=100))).write_adapter(tmp_path, "tiny")
    text = (tmp_path / CONFIG).read_text()
    assert json.loads(text)["base_model_name_or_path"] == "tiny"
    assert str(world[1].parent) not in text


def test_one_step_is_plain_adamw_on_the_mean_cross_entropy(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    cfg = config(max_tokens=100)
    made = trainer(folder, cfg)
    twin = trainer(folder, cfg)
    batch = made._text.batch(0, cfg.batch_contexts, 0)
    parameters = [p for p in twin.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr / WARMUP_STEPS, weight_decay=0.0)
    ids = torch.as_tensor(batch.input_ids, dtype=torch.long)
    labels = ids.masked_fill(~torch.as_tensor(batch.mask), -100)
    twin.model(input_ids=ids, labels=labels).loss.backward()
    optimizer.step()
    made.advance()
    ours = [p for p in made.model.parameters() if p.requires_grad]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, parameters, strict=True))
    assert any(bool(p.any()) for n, p in made.model.named_parameters() if "lora_B" in n)


def test_targets_that_name_nothing_are_an_error_that_names_what_there_is(tmp_path: Path) -> None:
    model = empty_model(save_model(tmp_path / "model", "gpt2"))
    check_targets(model, ["c_attn", "c_fc"])
    with pytest.raises(AdapterError, match=r"\['q_proj'\]; they have: c_attn, c_fc, c_proj"):
        check_targets(model, ["c_attn", "q_proj"])
    with pytest.raises(AdapterError, match="no linear module"):
        check_targets(model, ["lm_head"])


def test_a_configuration_without_targets_or_with_a_damaging_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="adapt.targets is empty"):
        AdaptConfig(targets=())
    with pytest.raises(ConfigError, match="adapt.lr"):
        AdaptConfig(lr=1e-3)
