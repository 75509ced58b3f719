"""Ctrl-C ends a training, whatever moment of it."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.torch import TorchTrainer

from deltasae_ray.runtime.controller import _Interruptible


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
