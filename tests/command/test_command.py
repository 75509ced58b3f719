"""`deltasae` says what it can do, and takes configurations by their names."""

import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from deltasae_ray.command.main import HELPERS, main
from deltasae_ray.study.config import SHIPPED
from deltasae_ray.study.main import _NOISE, JOBS, leave_out_noise, parse_words
from tests.study.submitted import REPOSITORY


def test_without_a_command_all_of_them_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in (*JOBS, *HELPERS))


def test_a_command_that_does_not_exist_ends_with_2_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["swep", "dry_run=true"])
    assert ended.value.code == 2 and "no command 'swep'" in (told := capsys.readouterr().err)
    assert "  sweep " in told


def test_every_job_that_can_be_submitted_is_a_command_too() -> None:
    assert {p.stem for p in (REPOSITORY / "jobs").glob("*.py")} <= {*JOBS, *HELPERS}


def test_a_configuration_is_found_by_its_name_and_a_path_still_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {p.stem for p in SHIPPED.glob("*.yaml")} >= {"demo", "paper-gemma2-9b"}
    assert parse_words(["config=demo", "layers=[3]"], "").adapt.ranks == (4, 16)
    Path("mine").write_text("layers: [7]\n")
    assert parse_words(["config=mine"], "").layers == (7,)
    with pytest.raises(SystemExit) as ended:
        parse_words(["config=domo"], "")
    assert ended.value.code == 2 and "demo, demo-gemmascope" in capsys.readouterr().err


def test_a_warning_that_no_user_can_act_on_is_left_out_and_another_of_its_library_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    leave_out_noise()
    seen: list[str] = []
    for name, begins in _NOISE.items():
        library, rest = name.lower().partition(".")[::2]
        (folder,) = find_spec(library).submodule_search_locations or ()
        files = [Path(folder) / f"{rest.replace('.', '/')}.py"] if rest else Path(folder).rglob("accel*/*.py")
        assert any(begins in file.read_text() for file in files), "the library words it otherwise by now"
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "disabled", False)  # an earlier test may have silenced the library
        monkeypatch.setattr(logger.manager, "disable", 0)
        level = logger.level
        logger.setLevel(logging.WARNING)
        logger.addHandler(handler := logging.Handler())
        handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
        logger.warning("%s, and so on", begins)
        logger.warning("the disk is slow")
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert seen == ["the disk is slow"] * len(_NOISE)
