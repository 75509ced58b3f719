"""Progress is a live display on a terminal, and few plain lines in a log."""

import contextlib
import os
import pty

import pytest

from deltasae_ray import progress
from deltasae_ray.progress import Bar


def test_a_log_has_a_line_at_the_start_and_at_the_end_and_seldom_between(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Bar(36_000, "harvest", "tokens") as bar:
        for _ in range(36_000):
            now += 1
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "harvest: 0 of 36,000 tokens (0%)"
    assert lines[-1].endswith("(100%), 1.0 tokens/s in 600.0 min") and "about" in lines[1]
    assert 5 < len(lines) < 20, "ten hours: an hour apart at last"


def test_what_is_not_shown_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(2, "", "tasks", shown=False) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal_share_one_display_and_take_names_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("COLUMNS", "160")
        with Bar(4, "fit [red]r4", "steps") as first, Bar(2, "read", "files") as second:
            first.set(4)
            first.note("worker lost [1]")
            second.update(2)
        terminal.flush()
        os.set_blocking(ours, False)
        shown = ""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(ours, 65536):
                shown += chunk.decode()
    os.close(ours)
    assert "fit [red]r4" in shown and "worker lost [1]" in shown and "2 of 2 files" in shown
    assert progress._Live.shared is None, "the last bar ends the display"
