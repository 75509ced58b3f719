"""Seconds that `deltasae_ray.fit_dictionary` takes with its defaults on rows as a notebook has them: 60,000 × 192, all cores.

    python -m tests.benchmarks.bench_library [rows=60000 d_model=192 rounds=3]

The aim is 30 s on two idle cores. Beside the seconds on the wall stand those of the processor divided by the cores: what the wall would say
if nothing else ran and both cores were always busy.
"""

import os
import statistics
import sys
import time

from deltasae_ray import fit_dictionary
from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.threads import cores
from tests.benchmarks.bench_fit import rows as made_rows

AIM_S = 30.0
ATOMS, ACTIVE = 400, 8


def main(rows: int = 60_000, d_model: int = 192, rounds: int = 3) -> None:
    x = made_rows(d_model, ATOMS, ACTIVE, count=rows + 4096)
    wall, busy = [], []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        dictionary = fit_dictionary(x[:rows])
        wall.append(time.perf_counter() - start)
        busy.append((time.process_time() - cpu) / cores())
    held = held_out(dictionary, x[rows:])
    steps = dictionary.meta["recipe"]["steps"]
    print(f"{rows:,} × {d_model}: d_sae {dictionary.d_sae}, k {dictionary.k}, {steps} steps, {cores()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"wall {statistics.median(wall):.1f} s (least {min(wall):.1f}), processor / cores {statistics.median(busy):.1f} s; aim {AIM_S:g} s")
    print(f"held-out FVU {held.fvu:.3f}, alive {held.alive:.2f}")


if __name__ == "__main__":
    main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])})
