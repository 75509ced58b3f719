"""JSON log lines: each says what it is about, and none holds a secret."""

import json
import logging
from collections.abc import Iterator

import pytest

from deltasae_ray import logs
from deltasae_ray.errors import ConfigError
from deltasae_ray.heartbeat import LABELS, Limits
from deltasae_ray.logs import label, labelled, wants_json, write_json


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    package = logging.getLogger("deltasae_ray")
    handlers, level, propagate, labels = (
        list(package.handlers),
        package.level,
        package.propagate,
        dict(LABELS),
    )
    yield
    package.handlers[:], package.propagate = handlers, propagate
    package.setLevel(level)
    LABELS.clear()
    LABELS.update(labels)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_the_run_stage_gang_and_unit_that_it_is_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTASAE_LOGS", "json")
    LABELS.clear()
    write_json()
    write_json()  # once more, as every task of a worker does
    label(run="01000000", gang="ab12")
    log = logging.getLogger("deltasae_ray.runtime.gang")
    with labelled(stage="harvest", unit="fit-1"):
        log.info("the unit is done")
    log.warning("no answer from %s\nand a second line", "http://ann:hunter2hunter2@host")
    first, second = lines(capsys)
    assert first == {
        **first, "run": "01000000", "stage": "harvest", "gang": "ab12", "unit": "fit-1",
        "level": "INFO", "logger": "deltasae_ray.runtime.gang", "message": "the unit is done",
    }  # fmt: skip
    assert first["time"].endswith("Z") and "T" in first["time"]
    assert (second["stage"], second["unit"], second["gang"]) == (None, None, "ab12")
    assert "hunter2" not in json.dumps(second)


def test_a_traceback_stays_in_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTASAE_LOGS", "json")
    write_json()
    try:
        raise KeyError("absent")
    except KeyError:
        logging.getLogger("deltasae_ray.x").exception("it failed")
    (line,) = lines(capsys)
    assert "KeyError: 'absent'" in line["exception"]


def test_text_stays_the_default_and_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("", "text"):
        monkeypatch.setenv("DELTASAE_LOGS", word)
        before = list(logging.getLogger("deltasae_ray").handlers)
        write_json()
        assert logging.getLogger("deltasae_ray").handlers == before
    monkeypatch.setenv("DELTASAE_LOGS", "xml")
    with pytest.raises(ConfigError, match="DELTASAE_LOGS='xml': give json"):
        wants_json()


def test_workers_get_the_labels_that_the_driver_has_as_it_asks() -> None:
    with labelled(run="01", stage="fit"):
        limits = Limits()
    assert limits.labels["stage"] == "fit" and limits.labels["run"] == "01"
    assert set(logs.FIELDS) >= set(limits.labels) & {"run", "stage", "gang", "unit"}
