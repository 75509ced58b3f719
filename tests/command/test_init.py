"""`deltasae init` writes a configuration that the jobs take, with what it saw in comments."""

from pathlib import Path

import pytest

from deltasae_ray.command.init import main
from deltasae_ray.study.main import parse_words


def test_what_it_writes_is_a_study_of_that_model_and_those_adapters(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_model), *map(str, tiny_adapters)]) == 0
    text = Path("study.yaml").read_text()
    cfg = parse_words(["config=study.yaml"], "")
    assert cfg.model.base == str(tiny_model) and cfg.adapters == tuple(map(str, tiny_adapters))
    assert cfg.layers == (2, 3) and "4 blocks of width 32 (llama)" in text
    assert "r4: rank 4, down_proj, o_proj, q_proj" in text
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert len(comments) > 10


def test_it_never_writes_over_a_file_and_refuses_what_is_no_adapter(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("layers: [1]\n")
    assert main([str(tiny_model), "out=mine.yaml"]) == 2
    assert Path("mine.yaml").read_text() == "layers: [1]\n" and "out=NAME.yaml" in capsys.readouterr().err
    assert main([str(tiny_model), str(tiny_model)]) == 2
    assert "whole model" in capsys.readouterr().err and not Path("study.yaml").exists()
