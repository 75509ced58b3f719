"""Waits for tasks: told, not without end, and over where a process is lost for good."""

import logging
import os
import signal
import time

import pytest

from deltasae_ray.errors import ResourceError, WorkerError
from deltasae_ray.runtime import tasks


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_of_which_none_ends_are_told_and_given_up_after_a_day(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "_QUIET_S", 0.5)
    monkeypatch.setattr(tasks, "_NOTHING_S", 1.0)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ResourceError, match="none of 1 tasks of 1 CPUs has ended .*`ray status`"),
    ):
        tasks.run_tasks([(time.sleep, 20)], 1.0, bar="sleep")
    assert "wait for nodes" in caplog.text


@pytest.mark.prove  # four processes come and go
@pytest.mark.usefixtures("ray_cluster")
def test_a_task_whose_process_is_lost_again_and_again_is_a_typed_error() -> None:
    with pytest.raises(WorkerError, match="lost again and again"):
        tasks.run_tasks([(_die, None)], 1.0, bar="die")


def _die(_: None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
