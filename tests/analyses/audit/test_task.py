"""The audit of leaves, one killed in the midst: what is whole stays, and only what is missing is made."""

import os
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.analyses.audit import task as audit
from deltasae_ray.analyses.audit.task import DIRECTIONS, FIGURES, AuditSpec, audit_key, audit_leaves
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage
from tests.analyses.made import KEY, make_leaves, make_study

CFG = DivergeConfig(atoms=3, code_tokens=64, bootstrap=100, latents=2)


def killed(storage: Storage, specs: list[AuditSpec]) -> None:
    """Audits in this process, which ends by kill -9 when the directions of the second audit are stored and
    its figures are not."""
    write, figures = Storage.write_json, iter(range(len(specs)))

    def struck(self: Storage, name: str, value: Any) -> None:
        if name.endswith(FIGURES) and next(figures) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, value)

    Storage.write_json = struck
    audit.run_tasks = lambda work, *_, **__: [function(argument) for function, argument in work]
    audit_leaves(storage, KEY, specs, CFG)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AuditSpec]]:
    """What is audited, by tasks that run in this process."""
    done: list[AuditSpec] = []

    def here(work: list, *_: Any, **__: Any) -> None:
        for function, argument in work:
            function(argument)
            done.append(argument.spec)

    monkeypatch.setattr(audit, "run_tasks", here)
    return done


def test_an_audit_that_was_killed_goes_on_with_what_is_not_whole(
    tmp_path: Path, asked: list[AuditSpec]
) -> None:
    storage = make_study(tmp_path)
    specs = [AuditSpec(leaf, ()) for leaf in make_leaves(storage)[:3]]
    keys = [audit_key(storage, open_harvest(storage, KEY), spec, CFG) for spec in specs]
    driver = get_context("spawn").Process(target=killed, args=(storage, specs))
    driver.start()
    driver.join(120)
    assert driver.exitcode == -signal.SIGKILL
    assert [[storage.exists(f"{key}/{name}") for name in (DIRECTIONS, FIGURES)] for key in keys] == [
        [True, True],
        [True, False],
        [False, False],
    ]
    whole = {name: (tmp_path / name).stat().st_mtime_ns for name in storage.list(keys[0])}
    found = audit_leaves(storage, KEY, specs, CFG)
    assert asked == specs[1:] and list(found) == [spec.leaf for spec in specs]
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in whole} == whole
    assert audit_leaves(storage, KEY, specs, CFG) == found and asked == specs[1:], (
        "nothing is missing any more"
    )
    storage.delete_file(f"{keys[0]}/{FIGURES}")
    assert audit_leaves(storage, KEY, specs, CFG) == found and asked[2:] == specs[:1], (
        "and the killed one's figures are those of an undisturbed one"
    )
