import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltasae_ray.errors import StorageError
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage
from tests.shards.made import HOOKS, KEY, SOURCES, begin, make_harvest, make_unit, make_vectors, write_unit

COUNT = 30
HARVEST = f"""
import sys
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage
from tests.shards.made import HOOKS, KEY, SOURCES, begin, make_unit, write_unit

storage = Storage(sys.argv[1])
units = {{u.name: u for u in map(make_unit, range({COUNT}))}}
begin(storage, list(units.values()))
print("begun", flush=True)
for name, work in Manifest.load(storage, KEY).missing(units, dict.fromkeys([s.digest for s in SOURCES], HOOKS)).items():
    write_unit(storage, units[name], work)
    print(name, flush=True)
Manifest.compact(storage, KEY)
"""


def hashes(storage: Storage) -> dict[str, bytes]:
    return {key: storage.read_bytes(key) for key in storage.list(KEY)}


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_ends_as_if_undisturbed(tmp_path: Path) -> None:
    calm, killed = Storage(str(tmp_path / "calm")), Storage(str(tmp_path / "killed"))
    make_harvest(calm, COUNT)
    Manifest.compact(calm, KEY)
    moments = random.Random(0)
    kills, before = 0, -1
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", HARVEST, killed.root], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for _ in range(moments.randrange(1, 6)):
            process.stdout.readline()
        time.sleep(moments.uniform(0, 0.005))
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == 0:
            break
        kills += 1
        done = len(Manifest.load(killed, KEY).rows)
        assert done > before, "what was committed before a kill is not done again"
        before = done
        if kills == 5:
            subprocess.run(
                [sys.executable, "-c", HARVEST, killed.root], stdout=subprocess.DEVNULL, check=True
            )
            break
    assert kills >= 3
    assert hashes(killed) == hashes(calm)
    open_shards(killed.root).verify()


def write_limited(root: str, limit: int) -> str:
    """Writes a shard with files limited to `limit` bytes, in a process of its own; returns what it said."""
    script = """
import sys
from deltasae_ray.errors import StorageError
from deltasae_ray.storage import Storage
from tests.shards.made import make_unit, write_unit
try:
    write_unit(Storage(sys.argv[1]), make_unit(0))
except StorageError as e:
    print(e)
"""
    command = [sys.executable, "-c", script, root]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    return done.stdout


def test_a_file_that_cannot_be_finished_is_named_and_leaves_nothing_that_counts(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    unit = make_unit(0)
    begin(storage, [unit])
    message = write_limited(storage.root, 1000)
    assert f"{storage.path(KEY)}/sources/base/{unit.name}-" in message
    assert "Free space or choose another storage.root, then run again" in message
    assert Manifest.load(storage, KEY).rows == ()
    assert not list(tmp_path.rglob(".tmp-*"))
    write_unit(storage, unit)
    open_shards(storage.root).verify()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_harvesting_goes_on_once_there_is_room(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no mount: {mounted.stderr}")
    try:
        storage = Storage(str(tmp_path))
        units = [make_unit(index) for index in range(COUNT)]
        begin(storage, units)
        with pytest.raises(StorageError, match=f"{storage.path(KEY)}/.* cannot be written: .*No space left"):
            for unit in units:
                write_unit(storage, unit)
        whole = Manifest.load(storage, KEY)
        assert 0 < len(whole.rows) < COUNT * len(SOURCES)
        assert whole.damaged == ()
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path)], check=True)
        assert repair(storage, KEY) == {}
        for name, work in whole.missing(
            [u.name for u in units], dict.fromkeys([s.digest for s in SOURCES], HOOKS)
        ).items():
            write_unit(storage, next(u for u in units if u.name == name), work)
        Manifest.compact(storage, KEY)
        open_shards(storage.root).verify()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "harvest").write_text("a file where a folder belongs")
    unit = make_unit(0)
    with pytest.raises(StorageError, match=f"{tmp_path}/{KEY}/sources/base/.* cannot be written"):
        write_shard(
            Storage(str(tmp_path)), KEY, "base", unit, {h: make_vectors(unit, "base", h) for h in HOOKS}
        )
