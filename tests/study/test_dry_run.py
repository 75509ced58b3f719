"""A dry run reads what a plan needs and leaves everything else where it is."""

import shutil
from pathlib import Path

import pytest
import torch

from deltasae_ray.errors import AdapterError, DictionaryError, ModelError
from deltasae_ray.sae.fitting import fit_dictionary
from deltasae_ray.study.run import run
from tests.study.streamed import config
from tests.study.words import words


def files(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.is_file()]


def test_given_adapters_are_checked_and_not_copied(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    run(
        "sweep",
        config(words(tiny_model, tmp_path / "root", f"adapters=[{tiny_adapters[0]}]", "dry_run=true")),
    )
    assert not (tmp_path / "root").exists()
    broken = shutil.copytree(tiny_adapters[0], tmp_path / "broken")
    (broken / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="holds no adapter_config.json with adapter_model.safetensors"):
        run("sweep", config(words(tiny_model, tmp_path / "root", f"adapters=[{broken}]", "dry_run=true")))


def test_no_weights_are_downloaded_for_a_plan(
    tiny_model: Path,
    tiny_adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = {"some/model": tiny_model, "some/r2": tiny_adapters[0]}

    def download(place: str, *, allow_patterns: list[str]) -> str:
        """What the hub does, of folders here."""
        found = tmp_path / "cache" / place
        for path in sorted({p for pattern in allow_patterns for p in hub[place].glob(pattern)}):
            found.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, found)
        return str(found)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run("sweep", config(words(Path("some/model"), tmp_path / "root", "adapters=[some/r2]", "dry_run=true")))
    printed = capsys.readouterr().out
    assert "some/model, 4 layers of width 32" in printed and "r2 (given)" in printed
    assert (
        files(tmp_path / "cache")
        and not [p for p in files(tmp_path) if p.suffix == ".safetensors"]
        and not (tmp_path / "root").exists()
    )


def test_a_local_reference_is_opened_for_a_plan_and_not_kept(tiny_model: Path, tmp_path: Path) -> None:
    def reference(name: str, model: str) -> str:
        rows = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
        made = fit_dictionary(rows, d_sae=32, k=4, steps=2)
        made.meta["model"] = model
        for layer in (1, 2):
            made.save(tmp_path / name / f"layer_{layer:02d}")
        return f"reference={tmp_path / name}"

    run(
        "sweep",
        config(words(tiny_model, tmp_path / "root", reference("of-a-llama", "llama-tiny"), "dry_run=true")),
    )
    other = reference("of-a-gemma", "google/gemma-2-2b")
    with pytest.raises(DictionaryError, match="made for google/gemma-2-2b.*of the family llama"):
        run("sweep", config(words(tiny_model, tmp_path / "root", other, "dry_run=true")))
    run(
        "sweep",
        config(words(tiny_model, tmp_path / "root", other, "reference.made_for=gemma-2-2b", "dry_run=true")),
    )
    (tmp_path / "of-a-llama/layer_02/sae_weights.safetensors").write_bytes(b"cut off")
    with pytest.raises(DictionaryError, match="layer_02"):
        run(
            "sweep",
            config(
                words(tiny_model, tmp_path / "root", f"reference={tmp_path / 'of-a-llama'}", "dry_run=true")
            ),
        )
    assert not (tmp_path / "root").exists()


def test_a_folder_without_weights_is_no_model_for_more_than_a_plan(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    run("sweep", config(words(model, tmp_path / "root", "dry_run=true")))
    with pytest.raises(ModelError, match="safetensors"):
        run("sweep", config(words(model, tmp_path / "root")))
