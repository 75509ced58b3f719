"""What a process holds, and how long it reads, of manifests of synthetic rows: the unit costs of
`study/scale.py`, a process each.

    python -m tests.benchmarks.bench_manifest [rows ...]
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.records import ShardRow, shard_file
from deltasae_ray.storage import Storage

KEY, SOURCES = "harvest/0123456789abcdef", 6
HOOKS = tuple(f"blocks.{layer}.hook_resid_post" for layer in (5, 10, 18, 22, 32, 38))


def lines(count: int) -> Iterator[str]:
    """Rows of as many units as `SOURCES` shards each come to."""
    unit, source, sha = "fit-0123456789abcdef", "fedcba9876543210", "0" * 64
    file = shard_file(unit, source, HOOKS)
    row = ShardRow(unit, source, "fit", "domain", HOOKS, file, sha, 1020, 44_000_000, 3584)
    line = json.dumps(row.to_json(), sort_keys=True, separators=(",", ":")) + "\n"
    for i in range(count):
        named = line.replace("0123456789abcdef", f"{i // SOURCES:016x}")
        yield named.replace("fedcba9876543210", f"{i % SOURCES:016x}").replace(sha, f"{i:064x}")


def resident(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1000


def write(root: str, count: int) -> None:
    file = Path(root) / KEY / "manifest.jsonl"
    file.parent.mkdir(parents=True)
    with file.open("w") as f:
        f.writelines(lines(count))
    print(f"{count:>12,} rows  {file.stat().st_size / count:>6.0f} B a row on disk", flush=True)


def read(root: str) -> None:
    before, began = resident("VmRSS"), time.monotonic()
    cpu = time.process_time()
    manifest = Manifest.load(Storage(root), KEY)
    count = len(manifest.rows)
    took, busy = time.monotonic() - began, time.process_time() - cpu
    held = 1e6 * (resident("VmRSS") - before) / count
    print(
        f"{'':>12}       {held:>6.0f} B a row resident, most {resident('VmHWM'):,.0f} MB; read in {took:.0f} s,"
        f" {1e6 * busy / count:.0f} µs of processor a row",
        flush=True,
    )


def main(counts: list[int]) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory() as root:
            for step in ("write", "read"):
                subprocess.run(
                    [sys.executable, "-m", "tests.benchmarks.bench_manifest", step, root, str(count)],
                    check=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["read"]:
        read(sys.argv[2])
    else:
        main([int(word) for word in sys.argv[1:]] or [100_000, 1_000_000])
