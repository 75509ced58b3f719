"""`deltasae doctor` names what lacks, with what to do about it."""

from pathlib import Path

import pytest

from deltasae_ray.command.doctor import main
from tests.study.submitted import free_port


def told_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """Exit code, and each part's finding with its remedy, on one line."""
    code, parts, part = main(words), {}, ""
    for line in capsys.readouterr().out.partition("\n\n")[0].splitlines():
        if not line.startswith(" "):
            part = line[7:17].strip()
        parts[part] = " ".join([parts.get(part, ""), *line.split()]).strip()
    return code, parts


def test_a_machine_that_lacks_nothing_says_what_it_has(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, parts = told_of([f"model.base={tiny_model}", f"storage.root={tmp_path}/new"], capsys)
    assert code == 0
    assert list(parts) == ["cores", "memory", "GPU", "disk", "Ray", "model", "MLflow"]
    assert parts["disk"].startswith("ok ") and str(tmp_path) in parts["disk"] and not list(tmp_path.iterdir())
    assert parts["MLflow"].startswith("ok ")


def test_a_missing_token_an_unreachable_mlflow_and_a_read_only_root_come_with_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    code, parts = told_of(
        [
            "model.base=owner/gated",
            "storage.root=/proc/study",  # a folder that root cannot write to either
            f"tracking.uri=http://127.0.0.1:{free_port()}",
        ],
        capsys,
    )
    assert code == 2
    assert parts["model"].startswith("lacks ") and "HF_TOKEN" in parts["model"]
    assert parts["hub token"].startswith("note ") and "→ gated models" in parts["hub token"]
    assert parts["disk"].startswith("lacks ") and "→ set storage.root" in parts["disk"]
    assert parts["MLflow"].startswith("lacks ") and "start the server" in parts["MLflow"]


def test_a_store_that_denies_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    root = f"s3://bucket/study?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=us-east-1"
    code, parts = told_of([f"storage.root={root}"], capsys)
    assert code == 2 and parts["store"].startswith("lacks ") and "→ see that the bucket" in parts["store"]
    assert parts["MLflow"].startswith("lacks ") and "tracking.uri" in parts["MLflow"]
