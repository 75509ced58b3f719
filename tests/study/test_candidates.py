"""What a search writes down while it runs: enough to go on from, and nothing that could run."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from deltasae_ray.errors import StorageError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.storage import Storage
from deltasae_ray.study.candidates import Candidates, Ended, tune_folder, watching
from deltasae_ray.study.search import _how, _space

NAMES, KEY = ("lr", "auxk"), "searching/0123.json"
FIRST, SECOND = {"lr": 1.2345678901234567e-4, "auxk": 0.0625}, {"lr": 3e-5, "auxk": 0.0}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_another_driver_is_told_of_every_candidate_and_how_each_ended(storage: Storage) -> None:
    watcher = watching(Candidates(storage, KEY, NAMES), NAMES)
    first, second = SimpleNamespace(config=FIRST), SimpleNamespace(config=SECOND)
    watcher.on_trial_start(0, [], first)
    watcher.on_trial_start(0, [], second)
    watcher.on_trial_start(1, [], first)  # tried again
    watcher.on_trial_result(1, [], first, {"steps": 100, "fvu": 0.5, "finished": 0})
    watcher.on_trial_result(2, [], first, {"steps": 200, "fvu": 0.4, "finished": 0, "done": True})
    later = Candidates(storage, KEY, NAMES)
    assert later.settings == [FIRST, SECOND], "to the last digit: checkpoints are named by them"
    assert later.ended == [(FIRST, Ended(200, 0.4, 0))]
    watching(later, NAMES).on_trial_result(3, [], second, {"steps": 600, "fvu": 0.2, "finished": 1})
    assert Candidates(storage, KEY, NAMES).ended[1] == (SECOND, Ended(600, 0.2, 1))


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b'{"candidates": 1}', b'{"candidates": [1]}',
        b'{"candidates": [{"settings": {"lr": "x", "auxk": 0}}]}', b"\x80\x04.",
     b'{"candidates": [{"settings": {"lr": 1, "auxk": 0}, "ended": {"steps": 1}}]}'],
)  # fmt: skip
def test_a_damaged_record_is_told_with_its_file_and_remedy(storage: Storage, content: bytes) -> None:
    storage.write_bytes(KEY, content)
    with pytest.raises(StorageError, match=r"searching/0123\.json .*delete it"):
        Candidates(storage, KEY, NAMES)


def test_tune_writes_to_a_folder_that_is_this_users_alone_and_goes() -> None:
    with tune_folder() as folder:
        assert Path(folder).stat().st_mode & 0o077 == 0
        (Path(folder) / "tuner.pkl").write_bytes(b"x")
    assert not Path(folder).exists()


def test_optuna_goes_on_with_the_candidates_that_began_and_draws_none_of_them_again() -> None:
    cfg = FitConfig(search="optuna", lr=1e-4)

    def drawn(before: list[dict[str, float]], count: int) -> list[dict[str, float]]:
        sampler = _how(cfg, before)["search_alg"]
        sampler.set_search_properties("fvu", "min", _space(cfg))
        return [sampler.suggest(f"t{i}") for i in range(count)]

    began = drawn([], 3)
    again = drawn(began[:2], 4)
    assert again[:2] == began[:2], "to the last digit: checkpoints are named by them"
    assert len({row["lr"] for row in again}) == 4
