"""Learning rate and AuxK searched within a trial, on real Ray Tune."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.errors import ConfigError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint, in_documents
from deltasae_ray.fit.rows import Rows, Tokens
from deltasae_ray.fit.run import fitted_points, keys_of
from deltasae_ray.sae.identity import Trial
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.records import Source
from deltasae_ray.storage import Storage, digest
from deltasae_ray.study.controls import with_settings
from deltasae_ray.study.grid import grid_points
from deltasae_ray.study.search import AUXK, LR_FACTOR, SEARCHED, _space, candidate_points, search, search_key
from deltasae_ray.study.tune import experiment, keys_of_trials
from tests.fit.made import CFG, KEY, make_harvest

TRIAL, SILENT = Trial("r4", 32, 4, "topk"), Trial("late", 32, 4, "topk")
"""`late` has no deltas at layer 1."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "root"))
    make_harvest(made)
    return made


class Planted:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def plant_pickles(storage: Storage, cfg: FitConfig) -> set[str]:
    """Puts pickles that run code wherever Ray Tune, Ray Train or torch might look for state below the root;
    their names."""
    code, keys = (
        pickle.dumps(Planted(storage.local("executed"))),
        keys_of(storage, KEY, candidate_points(TRIAL, [1]), cfg).values(),
    )
    search_folder = f"ray/search-{digest(search_key(storage, KEY, TRIAL, [1], cfg))}"
    names = {
        f"{search_folder}/{name}"
        for name in (
            "tuner.pkl",
            "trainable.pkl",
            "search_gen_state-1.pkl",
            "searcher-state-1.pkl",
            "x/error.pkl",
        )
    }
    names |= {f"{key}/{name}" for key in keys for name in ("checkpoint.pt", "checkpoint.pkl", "model.pt")}
    for name in names:
        storage.write_bytes(name, code)
    state = {
        "trial_data": [],
        "runner_data": {"x": {"_type": "CLOUDPICKLE_FALLBACK", "value": code.hex()}},
        "stats": {},
    }
    storage.write_json(f"{search_folder}/experiment_state-2026-01-01_00-00-00.json", state)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("how", ["asha", pytest.param("optuna", marks=pytest.mark.prove)])
def test_the_best_settings_on_documents_of_the_training_split_are_found(
    ray_cluster: None, storage: Storage, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltasae_ray.study.search.MAX_FAILURES", 0)
    samples = 2  # each is a run of Ray Train inside one of Tune
    cfg = replace(CFG, search=how, search_samples=samples, max_concurrent_trials=2, lr=1e-4)
    planted = plant_pickles(storage, cfg)
    # What cannot be fitted at all is searched by one of them: their candidates run the same code.
    hopeless = [SILENT] if how == "asha" else []
    settings, failed = search(storage, KEY, [TRIAL, *hopeless], [1], cfg)
    assert not storage.local("executed").exists(), "a pickle below the root was read"
    assert {n for n in storage.list("") if n.endswith((".pkl", ".pt", ".pickle"))} == planted, (
        "no pickle is written below the root either"
    )
    assert not storage.list("searching"), "the record of the running search is gone with it"
    record = storage.read_json(storage.list("searches")[0])
    finished = [row for row in record["candidates"] if "fvu" in row]
    best = min(finished, key=lambda row: row["fvu"])
    assert len(record["candidates"]) == samples and set(best["settings"]) == set(SEARCHED)
    assert settings == {TRIAL: replace(cfg, **best["settings"])}
    assert cfg.lr / LR_FACTOR <= settings[TRIAL].lr <= cfg.lr * LR_FACTOR and settings[TRIAL].auxk in AUXK
    (judged,) = fitted_points(storage, KEY, candidate_points(TRIAL, [1]), settings[TRIAL]).values()
    assert judged.metrics["fvu"] == best["fvu"]
    assert not fitted_points(storage, KEY, grid_points(TRIAL, [1], 1), settings[TRIAL]), (
        "the trial's own are fitted to all documents"
    )
    assert not [name for name in storage.list("dictionaries") if "checkpoint" in name and name not in planted]
    assert list(failed) == hopeless and all("rows are equal" in error for error in failed.values())
    before = storage.list("dictionaries")
    assert search(storage, KEY, [TRIAL], [1], cfg)[0] == settings and storage.list("dictionaries") == before


def test_settings_are_judged_by_training_documents_that_they_were_not_fitted_to_and_never_by_the_evaluation_split(
    storage: Storage,
) -> None:
    shards = open_harvest(storage, KEY)
    tokens = Tokens.read(shards)
    rows = Rows.read(shards, tokens, "r4", 1)
    (candidate,), (final,) = candidate_points(TRIAL, [1]), grid_points(TRIAL, [1], 1)
    fitted, judged = (
        {row.tobytes() for row in part}
        for part in (rows.training(candidate).numpy(), rows.judging(candidate))
    )
    assert fitted and judged and not fitted & judged
    assert fitted | judged == {row.tobytes() for row in rows.training(final).numpy()}
    assert rows.judging(final) is rows.evaluation and not judged & {row.tobytes() for row in rows.evaluation}
    docs = tokens.fit_docs
    assert not set(docs[in_documents(docs, "search")]) & set(docs[~in_documents(docs, "search")])


def test_the_controls_of_a_trial_are_fitted_with_the_settings_that_were_found_for_it() -> None:
    found = replace(CFG, lr=1e-4)
    points = [
        FitPoint("r4", 1, 32, 4, "topk", 0, control="gaussian"),
        FitPoint("r4", 1, 48, 4, "topk", 1),
        FitPoint("base", 1, 32, 4, "topk", 1001, "B"),
    ]
    assert list(with_settings(points, {TRIAL: found}, CFG).values()) == [found, CFG, CFG]


def test_another_adapter_of_the_same_name_is_searched_anew(tmp_path: Path) -> None:
    def key(folder: str, content: str) -> str:
        made = Storage(str(tmp_path / folder))
        make_harvest(
            made,
            sources=(
                Source("base", "base", "base"),
                Source("r4", "adapter", content, rank=4, alpha=8.0, seed=0),
            ),
        )
        return search_key(made, KEY, TRIAL, [1], replace(CFG, search="asha"))

    assert key("one", "a" * 16) == key("again", "a" * 16) != key("two", "b" * 16)


def test_a_tune_experiment_is_named_by_what_it_fits(tmp_path: Path) -> None:
    def name(folder: str, content: str, **words: float) -> str:
        made = Storage(str(tmp_path / folder))
        make_harvest(
            made,
            sources=(
                Source("base", "base", "base"),
                Source("r4", "adapter", content, rank=4, alpha=8.0, seed=0),
            ),
        )
        return experiment(keys_of_trials(made, KEY, {TRIAL: replace(CFG, **words)}, [1], 2))

    first = name("one", "a" * 16)
    assert first == name("again", "a" * 16, batch_tokens=CFG.batch_tokens), (
        "what changes no dictionary changes no name"
    )
    assert len({first, name("two", "b" * 16), name("three", "a" * 16, lr=1e-4)}) == 3


def test_what_is_studied_cannot_be_searched() -> None:
    assert set(_space(FitConfig(search="asha"))) == set(SEARCHED) and "k" not in SEARCHED
    with pytest.raises(ConfigError, match="fit.search_samples"):
        FitConfig(search="asha", search_samples=0)
