"""Repeats the cases over seeds and writes what came out:

    python -m tests.metrics.visibility.repetitions FOLDER [--seeds 50] [--only known] [--to FILE]

Dictionaries and outcomes are kept in FOLDER, so that a run goes on where the last one ended; outcomes of
another state of the estimator are not counted.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import deltasae_ray.metrics.visibility as room
from deltasae_ray.sae.dictionary import Dictionary
from tests.metrics.visibility.cases import BESIDE, CASES, Case, Outcome, labels
from tests.metrics.visibility.worlds import Fitted, Planted, decided, fitted, known_all

D_SAE = 128


def fits(world: Planted, seed: int, folder: Path, steps: int) -> Fitted:
    """Two delta dictionaries as the product fits them, kept by what they were fitted to; the truth but for
    an error on the side of the base."""
    rows, own = world.deltas[: world.fit], []
    name = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
    for i in range(2):
        place = folder / "fits" / f"{name}-{steps}-{seed}-{i}"
        if not (place / "cfg.json").exists():
            fitted(rows, 100 * seed + i, d_sae=D_SAE, steps=steps).save(place)
        own.append(Dictionary.load(place))
    return replace(known_all(world, seed), dictionary=own[0], second=(own[1],))


def state() -> str:
    """Digest of the estimator's files."""
    files = sorted(Path(str(room.__file__)).parent.glob("*.py"))
    return hashlib.sha256(b"".join(x.read_bytes() for x in files)).hexdigest()[:12]


def outcome(case: Case, made: str, seed: int, folder: Path) -> Outcome:
    world = case.world(seed)
    dictionaries = known_all(world, seed) if made == "known" else fits(world, seed, folder, case.steps)
    return Outcome.of(world, decided(world, dictionaries, seed), dictionaries)


class Kept:
    """Outcomes that are there already, a line each."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f"outcomes-{state()}.jsonl"
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.found: dict[tuple[str, str, int], Outcome] = {}
        for line in map(json.loads, lines):
            key = line.pop("case"), line.pop("made"), line.pop("seed")
            self.found[key] = Outcome(**{**line, "features": tuple(line["features"])})

    def get(self, case: Case, made: str, seed: int) -> Outcome:
        key = case.name, made, seed
        if key not in self.found:
            self.found[key] = outcome(case, made, seed, self.folder)
            line = {"case": case.name, "made": made, "seed": seed, **asdict(self.found[key])}
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return self.found[key]

    def all_of(self, name: str, made: str) -> dict[int, Outcome]:
        return {seed: x for (n, m, seed), x in self.found.items() if (n, m) == (name, made)}


def moved(kept: Kept, case: Case, made: str) -> float | None:
    """How far f lies from that of the case beside which it stands, at most."""
    beside = kept.all_of(BESIDE[case.name][0], made)
    gaps = [
        abs((x.f or 0) - (beside[seed].f or 0))
        for seed, x in kept.all_of(case.name, made).items()
        if seed in beside
    ]
    return max(gaps, default=None)


def summary(kept: Kept) -> Iterator[str]:
    """A line each case and kind of dictionaries."""
    for made in ("known", "fitted"):
        yield made
        for case in CASES:
            found = list(kept.all_of(case.name, made).values())
            if not found:
                continue
            holds, told = case.holds(found), ""
            if case.name in BESIDE:
                gap = moved(kept, case, made)
                told, holds = f" moved {gap}", holds and gap is not None and gap <= BESIDE[case.name][1]
            values = [x.f for x in found if x.f is not None]
            between = f"f {min(values):.2f}..{max(values):.2f}" if values else "no f"
            covered, novel = sum(x.covered for x in found), sum(x.novel for x in found)
            named, judged = sum(x.named for x in found), sum(x.judged for x in found)
            right, asked = sum(x.right for x in found), sum(x.asked for x in found)
            yield (
                f"  {'holds' if holds else 'FAILS'}  {case.name}: {len(found)} seeds {dict(labels(found))} "
                f"{between} covered {covered} named {named} of {judged} novel {novel} "
                f"classes {right}/{asked}{told} [{case.asked}]"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--only", choices=["known", "fitted"])
    parser.add_argument("--case", default="")
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    kept = Kept(asked.folder)
    for made in [asked.only] if asked.only else ["known", "fitted"]:
        for seed in range(asked.seeds):
            for case in (x for x in CASES if made in x.made and asked.case in x.name):
                kept.get(case, made, seed)
    told = "\n".join(summary(kept))
    sys.stdout.write(told + "\n")
    if asked.to:
        asked.to.write_text(told + "\n")


if __name__ == "__main__":
    main()
