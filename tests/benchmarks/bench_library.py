"""Seconds that `deltasae_ray.fit_dictionary` takes with its defaults on rows as a notebook has them: 60,000 ×
192, all cores.

    python -m tests.benchmarks.bench_library [rows=60000 d_model=192 rounds=3 steps=0]

The aim is 30 s on two idle cores. The rows' effective rank asks for 2048 latents, of which most die: with
AuxK the dearest that 192 dimensions can ask for. Beside the seconds on the wall stand those of the processor,
which others on the machine change less; `taskset -c 0` before it all gives those of one thread, without what
threads spend waiting for each other.
"""

import os
import statistics
import sys
import time

from deltasae_ray import fit_dictionary
from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.threads import cores
from tests.sae.planted import planted

AIM_S = 30.0


def main(rows: int = 60_000, d_model: int = 192, rounds: int = 3, steps: int = 0) -> None:
    world = planted(1_000, rows, d_model=d_model, subspace=d_model, atoms=300, active=8)
    wall, busy = [], []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        dictionary = fit_dictionary(world.x, steps=steps or None)
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - cpu)
    held = held_out(dictionary, world.held_out)
    taken, dead = dictionary.meta["recipe"]["steps"], dictionary.meta["curve"][-1]["dead"]
    print(
        f"{rows:,} × {d_model}: d_sae {dictionary.d_sae}, {dead} dead at the end, {taken} steps, {cores()}"
        f" cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"wall {statistics.median(wall):.1f} s (least {min(wall):.1f}), processor"
        f" {statistics.median(busy):.1f} s; aim {AIM_S:g} s"
    )
    print(f"held-out FVU {held.fvu:.3f}, alive {held.alive:.2f}")


if __name__ == "__main__":
    main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])})
