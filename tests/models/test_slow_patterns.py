"""A pattern that an adapter brings and that matches for ever is refused in time; those that people write are
not."""

import json
import time
from pathlib import Path

import pytest

from deltasae_ray.errors import AdapterError
from deltasae_ray.models import slow_patterns
from deltasae_ray.models.adapter_check import check_adapter
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.slow_patterns import check_patterns_end
from tests.tiny import save_adapter

NAMES = [
    f"model.layers.{i}.{m}"
    for i in range(42)
    for m in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
]
ENDLESS = r"(([a-z0-9_.]+)*)*!"
WRITTEN = (
    r".*\.(q|v)_proj$",
    r"(?:.*?(?:vision|language|text).*?(?:self_attn|attention|mlp|ffn).*?(?:q_proj|k_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp)",
    r"^(?!.*vision).*layers\.(1|2\d)\.(self_attn|mlp)\..*_proj",
)


def test_an_adapter_whose_pattern_never_ends_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_patterns, "TRIED_S", 1.0)
    folder = save_adapter(tmp_path / "a", tiny_model, rank=2, seed=0)
    file, model = folder / "adapter_config.json", empty_model(tiny_model)
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": ENDLESS}))
    with pytest.raises(
        AdapterError,
        match=(
            r"adapter_config.json: target_modules holds .*does not come to an end.*Name the modules in a list"
        ),
    ):
        check_adapter(folder, model)


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {ENDLESS: 2}},
        {"alpha_pattern": {ENDLESS: 2}},
        {"exclude_modules": ENDLESS},
        {"layers_pattern": [ENDLESS]},
    ],
)
def test_no_field_with_a_pattern_is_left_out(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_patterns, "TRIED_S", 0.5)
    with pytest.raises(AdapterError, match=f"{next(iter(config))} holds"):
        check_patterns_end(Path("adapter_config.json"), config, NAMES)


def test_patterns_that_people_write_are_tried_in_no_time() -> None:
    began = time.monotonic()
    for text in WRITTEN:
        check_patterns_end(Path("adapter_config.json"), {"target_modules": text}, NAMES)
    assert time.monotonic() - began < 15
