"""What a process holds, and how long it reads, of manifests of synthetic rows: the unit costs of
`study/scale.py`, a process each.

    python -m tests.benchmarks.bench_manifest [rows ...]
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.columns import SCHEMA
from deltasae_ray.shards.manifest import Manifest, manifest_file, write_compacted
from deltasae_ray.storage import Storage

KEY, SOURCES = "harvest/0123456789abcdef", 6
HOOKS = tuple(map(Hookpoint, (5, 10, 18, 22, 32, 38)))


def made(count: int) -> pa.Table:
    """Rows of as many units as `SOURCES` shards each come to, in the manifest's order."""
    rng = np.random.default_rng(0)
    units = np.sort(rng.integers(0, 2**62, -(-count // SOURCES)))
    source = np.repeat(np.arange(SOURCES, dtype=np.int32), len(units))[:count]
    names = pa.array([f"{u:016x}" for u in units])
    one, numbers = np.zeros(count, np.int32), rng.integers(0, 2**20, count)

    def coded(codes: np.ndarray, values: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(values))

    columns = {
        "source": coded(source, [f"{i:016x}" for i in range(SOURCES)]),
        "unit": pa.concat_arrays([names] * SOURCES)[:count],
        "hookpoints": coded(one, [",".join(map(str, HOOKS))]),
        "split": coded(one, ["fit"]),
        "corpus": coded(one, ["domain"]),
        "sha256": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), count, [None, pa.py_buffer(rng.bytes(32 * count))]
        ),
        "rows": pa.array(1000 + numbers % 24),
        "bytes": pa.array(44_000_000 + numbers),
        "d_model": pa.array(np.full(count, 3584)),
    }
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def resident(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1000


def write(root: str, count: int) -> None:
    table, began = made(count), time.monotonic()
    write_compacted(Storage(root), KEY, table)
    size = (Path(root) / manifest_file(KEY)).stat().st_size
    print(
        f"{count:>12,} rows  {size / count:>6.0f} B a row on disk; written in {time.monotonic() - began:.1f} s,"
        f" most {resident('VmHWM'):,.0f} MB with the rows made",
        flush=True,
    )


def read(root: str) -> None:
    before, began, cpu = resident("VmRSS"), time.monotonic(), time.process_time()
    manifest = Manifest.load(Storage(root), KEY)
    count, took, busy = len(manifest), time.monotonic() - began, time.process_time() - cpu
    held = 1e6 * (resident("VmRSS") - before) / count
    print(
        f"{'':>12}       {held:>6.0f} B a row resident, most {resident('VmHWM'):,.0f} MB; read in {took:.1f} s,"
        f" {1e6 * busy / count:.2f} µs of processor a row",
        flush=True,
    )
    units, began = manifest.select([f"{0:016x}"])["unit"].to_pylist(), time.monotonic()
    assert not manifest.missing(units, {f"{i:016x}": HOOKS for i in range(SOURCES - 1)})
    print(
        f"{'':>12}       what is missing of {len(units):,} units: {time.monotonic() - began:.1f} s",
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
