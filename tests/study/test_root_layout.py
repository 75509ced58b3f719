"""A root of another layout is refused before anything is read or made there."""

import pickle
from pathlib import Path

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.errors import LayoutError, StorageError
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.root_layout import LAYOUT, LAYOUT_FILE, check_layout, mark_layout
from deltasae_ray.study.run import run
from tests.study.words import words


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


def test_an_empty_root_is_marked_and_then_continued(storage: Storage) -> None:
    check_layout(storage)
    assert not Path(storage.root).exists(), "a dry run, or a study that its plan refuses, writes nothing"
    mark_layout(storage)
    assert storage.read_json(LAYOUT_FILE) == {"layout": LAYOUT}
    storage.write_json("harvest/0123/harvest.json", {})
    check_layout(storage)


@pytest.mark.parametrize(
    "file", ["harvest/0123/harvest.json", "dictionaries/0123/manifest.json", "study.json"]
)
def test_a_root_of_an_earlier_layout_is_refused_at_the_plan_and_left_as_it_is(
    file: str, storage: Storage, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.write_json(file, {})
    for dry in ("true", "false"):
        cfg = parse(
            StudyConfig,
            words(tiny_model, storage.root, f"dry_run={dry}"),
            shorthand=SHORTHAND,
            description="",
        )
        with pytest.raises(
            LayoutError,
            match=(
                rf"root.* has layout 0, and this version needs layout {LAYOUT}\. Give another storage\.root"
            ),
        ) as refused:
            run("sweep", cfg)
        assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    assert storage.list("") == [file] and "Plan" not in capsys.readouterr().out


def test_a_root_of_a_later_layout_is_refused_too(storage: Storage) -> None:
    storage.write_json(LAYOUT_FILE, {"layout": LAYOUT + 1})
    with pytest.raises(
        LayoutError, match=f"a later version: it has layout {LAYOUT + 1}.* needs layout {LAYOUT}"
    ):
        check_layout(storage)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"layout": "1"}', b'{"layout": true}', b'{"layout": -1}', b"\xff"]
)
def test_a_damaged_mark_is_told_with_its_file(storage: Storage, content: bytes) -> None:
    storage.write_bytes(LAYOUT_FILE, content)
    with pytest.raises((LayoutError, StorageError), match=r"layout\.json"):
        check_layout(storage)
