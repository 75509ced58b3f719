"""Which dictionaries of a release stand beside a reference."""

from pathlib import Path

import pytest

from deltasae_ray.sae.dictionary import CFG
from deltasae_ray.sae.saelens import Reference
from deltasae_ray.sae.siblings import siblings


def placed(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / CFG).write_text("{}")


def test_folders_of_another_width_or_l0_of_the_same_layer_are_siblings_the_nearest_first(
    tmp_path: Path,
) -> None:
    placed(
        tmp_path,
        *(f"layer_12/width_{w}/average_l0_{l0}" for w, l0 in (("16k", 82), ("16k", 22), ("32k", 60))),
        *("layer_12/width_65k/average_l0_72", "layer_13/width_16k/average_l0_80"),
    )
    (tmp_path / "layer_12/width_16k/average_l0_300").mkdir()  # without a file that can be opened
    found = siblings(Reference(12, tmp_path / "layer_12/width_16k/average_l0_82"))
    assert [str(x) for x in found] == [
        str(tmp_path / "layer_12" / name) for name in ("width_16k/average_l0_22", "width_32k/average_l0_60")
    ], "another layer is none, and four times the width is too much"
    assert all(x.layer == 12 for x in found)


def test_flat_names_and_names_of_a_release_are_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"layer_9_width_16k_l0_{size}" for size in ("small", "medium", "big")]
    names += ["layer_9_width_1m_l0_big"]
    placed(tmp_path, *names, "layer_10_width_16k_l0_small", "other")
    wanted = [names[2], names[0]]
    assert [x.folder.name for x in siblings(Reference(9, tmp_path / names[1])) if x.folder] == wanted
    monkeypatch.setattr("deltasae_ray.sae.siblings.release_ids", {"r": names}.get)
    assert [x.sae_id for x in siblings(Reference(9, release="r", sae_id=names[1], model="m"))] == wanted


def test_the_thirds_of_a_reference_made_here_are_siblings(tmp_path: Path) -> None:
    placed(tmp_path, *(f"{third}/layer_{n:02d}" for third in ("1of3", "2of3", "3of3") for n in (9, 12)))
    found = siblings(Reference(9, tmp_path / "1of3/layer_09"))
    assert [x.folder for x in found] == [tmp_path / third / "layer_09" for third in ("2of3", "3of3")]


def test_a_folder_whose_name_tells_neither_has_none(tmp_path: Path) -> None:
    placed(tmp_path, "layer_12", "layer_13")
    assert siblings(Reference(12, tmp_path / "layer_12")) == []
