"""A job without words finds its place and its tracking server in what the launcher file set, or is refused."""

from pathlib import Path

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.errors import ConfigError
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.launched import with_launcher

DEMO = f"config={Path(__file__).parents[2]}/jobs/configs/demo.yaml"
JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
SET = {"DELTASAE_STORAGE_ROOT": "s3://bucket/all", "DELTASAE_TRACKING_URI": "http://mlflow:5000"}


def placed(*words: str, **environ: str) -> tuple[str, str]:
    cfg = with_launcher(parse(StudyConfig, words, shorthand=SHORTHAND, description=""), environ)
    return cfg.storage.root, cfg.tracking.uri


def test_the_shipped_demo_goes_below_the_launchers_root() -> None:
    assert placed(DEMO, **JOB, **SET) == ("s3://bucket/all/runs/demo", "http://mlflow:5000")


def test_options_of_the_store_stay_behind_the_path() -> None:
    root = {**SET, "DELTASAE_STORAGE_ROOT": "s3://b/p/?endpoint_override=127.0.0.1:9000&scheme=http"}
    assert placed(DEMO, **JOB, **root)[0] == (
        "s3://b/p/runs/demo?endpoint_override=127.0.0.1:9000&scheme=http"
    )


def test_what_a_word_says_outright_stays() -> None:
    words = ("storage.root=gs://mine/x", "tracking.uri=https://other")
    assert placed(*words, **JOB, **SET) == ("gs://mine/x", "https://other")
    assert placed("storage.root=/mnt/nfs/x", **JOB, **SET)[0] == "/mnt/nfs/x"


def test_without_the_variables_a_laptop_keeps_its_folder_and_its_own_store() -> None:
    assert placed(DEMO) == ("runs/demo", "")
    assert placed(DEMO, DELTASAE_STORAGE_ROOT="", DELTASAE_TRACKING_URI="") == ("runs/demo", "")


@pytest.mark.parametrize(
    "environ", [{}, {"DELTASAE_STORAGE_ROOT": "s3://bucket/all"}, {"DELTASAE_TRACKING_URI": "http://m"}]
)
def test_a_job_without_a_place_is_refused_naming_both_variables(environ: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match="set DELTASAE_STORAGE_ROOT .* and DELTASAE_TRACKING_URI .* once where"
    ):
        placed(DEMO, **JOB, **environ)


def test_a_job_on_one_machine_may_write_to_a_folder_and_track_there() -> None:
    assert placed("storage.root=/tmp/x", **JOB) == ("/tmp/x", "")


@pytest.mark.parametrize(
    ("environ", "words", "told"),
    [
        ({"DELTASAE_STORAGE_ROOT": "shared"}, (), "DELTASAE_STORAGE_ROOT='shared' is relative"),
        ({"DELTASAE_STORAGE_ROOT": "s3:/b"}, (), "DELTASAE_STORAGE_ROOT='s3:/b' begins like an address"),
        ({"DELTASAE_STORAGE_ROOT": "s3://${BUCKET}"}, (), "DELTASAE_STORAGE_ROOT.*holds the variable"),
        (SET, ("storage.root=../other",), "names no folder below DELTASAE_STORAGE_ROOT='s3://bucket/all'"),
        (SET, ("storage.root=.",), "names no folder below"),
        ({"DELTASAE_TRACKING_URI": "sqlite:///x"}, (), "DELTASAE_TRACKING_URI: tracking.uri='sqlite"),
    ],
)
def test_a_variable_that_is_no_address_is_told_by_its_name(
    environ: dict[str, str], words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        placed(*words, **environ)
