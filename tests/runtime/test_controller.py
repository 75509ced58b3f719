"""Ctrl-C ends a training, whatever moment of it; a lost node does not."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from deltasae_ray.errors import WorkerError
from deltasae_ray.runtime.controller import _Interruptible, train_to_the_end


def test_ctrl_c_as_a_run_ends_is_an_interrupt_though_there_is_nothing_left_to_abort(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controller: Any = SimpleNamespace(abort=SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(ray, "get", lambda _: None)  # the controller has ended its run, and answers
    before = signal.getsignal(signal.SIGINT)
    try:
        TorchTrainer._register_sigint_handler(object.__new__(TorchTrainer), controller)
        signal.raise_signal(signal.SIGINT)  # Ray's own handler: swallowed
        _Interruptible._register_sigint_handler(object.__new__(_Interruptible), controller)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


NODE = RayActorError(error_msg="The actor died because its node has died. Node Id: 0xab")
KILLED = RayActorError(error_msg="The worker process has died with SIGKILL.")
BUG = WorkerGroupError("a worker failed", {0: ValueError("a bug")})


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What becomes of one training after the other; None ends well."""
    scripted: list[Any] = []

    def fit(_: Any) -> None:
        if (outcome := scripted.pop(0)) is not None:
            raise outcome

    monkeypatch.setattr(_Interruptible, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(_Interruptible, "fit", fit)
    return scripted


def test_lost_nodes_do_not_spend_what_is_meant_for_faults(fits: list[Any]) -> None:
    peer = WorkerGroupError("workers failed", {0: RuntimeError("Connection closed by peer"), 1: NODE})
    fits += [peer, NODE, peer, KILLED, NODE, None]
    train_to_the_end({}, max_failures=1)
    assert fits == []


def test_a_controller_that_is_lost_too_often_and_a_bug_end_the_training(fits: list[Any]) -> None:
    fits += [KILLED, KILLED]
    with pytest.raises(WorkerError, match="lost 2 times"):
        train_to_the_end({}, max_failures=1)
    fits += [BUG]
    with pytest.raises(WorkerGroupError):
        train_to_the_end({}, max_failures=1)
