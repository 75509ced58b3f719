"""Learning rate and AuxK searched within a trial, on real Ray Tune."""

from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.errors import ConfigError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.run import fitted_points
from deltasae_ray.shards.records import Source
from deltasae_ray.storage import Storage
from deltasae_ray.sweep.grid import Trial
from deltasae_ray.sweep.search import AUXK, LR_FACTOR, search, search_key
from tests.fit.made import CFG, KEY, make_harvest

TRIAL, SILENT = Trial("r4", 32, 4, "topk"), Trial("late", 32, 4, "topk")
"""`late` has no deltas at layer 1."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "root"))
    make_harvest(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("how", "over"), [("asha", ("lr", "auxk")), ("optuna", ("lr",))])
def test_the_best_settings_are_found_and_their_dictionaries_kept(ray_cluster: None, storage: Storage, how: str, over: tuple) -> None:
    samples = 3 if how == "asha" else 2  # each is a run of Ray Train inside one of Tune
    cfg = replace(CFG, search=how, search_over=over, search_samples=samples, max_concurrent_trials=2, max_failures=0, lr=1e-4)
    # What cannot be fitted at all is searched by one of them: their candidates run the same code.
    hopeless = [SILENT] if how == "asha" else []
    settings, failed = search(storage, KEY, [TRIAL, *hopeless], [1], cfg)
    record = storage.read_json(storage.list("searches")[0])
    finished = [row for row in record["candidates"] if "fvu" in row]
    best = min(finished, key=lambda row: row["fvu"])
    assert len(record["candidates"]) == samples and set(best["settings"]) == set(over)
    assert settings == {TRIAL: replace(cfg, **best["settings"])}
    assert cfg.lr / LR_FACTOR <= settings[TRIAL].lr <= cfg.lr * LR_FACTOR and settings[TRIAL].auxk in AUXK
    (fitted,) = fitted_points(storage, KEY, TRIAL.points([1], 1), settings[TRIAL]).values()
    assert fitted.metrics["fvu"] == best["fvu"]
    assert not [name for name in storage.list("dictionaries") if "checkpoint" in name]
    assert list(failed) == hopeless and all("rows are equal" in error for error in failed.values())
    before = storage.list("dictionaries")
    assert search(storage, KEY, [TRIAL], [1], cfg)[0] == settings and storage.list("dictionaries") == before


def test_another_adapter_of_the_same_name_is_searched_anew(tmp_path: Path) -> None:
    def key(folder: str, content: str) -> str:
        made = Storage(str(tmp_path / folder))
        make_harvest(made, sources=(Source("base", "base", "base"), Source("r4", "adapter", content, rank=4, alpha=8.0, seed=0)))
        return search_key(made, KEY, TRIAL, [1], replace(CFG, search="asha"))

    assert key("one", "a" * 16) == key("again", "a" * 16) != key("two", "b" * 16)


def test_what_is_studied_cannot_be_searched() -> None:
    for words in ({"search_over": ()}, {"search_over": ("lr", "lr")}, {"search_samples": 0}):
        with pytest.raises(ConfigError, match="fit.search"):
            FitConfig(search="asha", **words)
