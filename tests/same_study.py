"""Whether two roots hold the same study: `python -m tests.same_study ROOT_A ROOT_B`, which exits with 1 on
any difference.

Shards are compared byte for byte, the tables in the rows and columns that both have. Names of figures with
endings, as the table had them before it had the columns `variant` and `over_seeds`, are the same rows.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from deltasae_ray.metrics.catalogue import parse_name

SHOWN = 20
"""So many differences are printed."""
KEYS = {
    "divergence.parquet": (
        "adapter",
        "layer",
        "d_sae",
        "k",
        "architecture",
        "seed",
        "reference",
        "metric",
        "variant",
        "over_seeds",
        "corpus",
    ),
    "audit.parquet": ("adapter", "layer", "d_sae", "k", "architecture", "seed", "reference", "name"),
}
"""Table → the columns that name a row."""

Records = list[dict[str, Any]]


@dataclass
class Compared:
    """What was compared, and what differs."""

    files: int = 0
    rows: int = 0
    values: int = 0
    only: dict[str, tuple[int, int]] = field(default_factory=dict)
    """What → how many only one of the two has, by root; told, and a difference for shards alone."""
    differences: list[str] = field(default_factory=list)

    def told(self) -> str:
        """All of it in words."""
        lines = [
            f"compared {self.files:,} files of shards, {self.rows:,} rows and {self.values:,} values of"
            " tables"
        ]
        lines += [f"only in one: {what} {a:,} and {b:,}" for what, (a, b) in self.only.items() if a or b]
        lines += [f"DIFFERENT {d}" for d in self.differences[:SHOWN]]
        return "\n".join([*lines, f"{len(self.differences):,} differences"])


def compare_shards(a: Path, b: Path, found: Compared) -> None:
    """Every file below harvest/*/sources, by its sha256."""
    of_a, of_b = _shards(a), _shards(b)
    found.only["shards"] = len(of_a.keys() - of_b.keys()), len(of_b.keys() - of_a.keys())
    found.differences += [f"{name} is in one root only" for name in sorted(of_a.keys() ^ of_b.keys())]
    for name in sorted(of_a.keys() & of_b.keys()):
        found.files += 1
        if of_a[name] != of_b[name]:
            found.differences.append(f"{name}: sha256 {of_a[name]} and {of_b[name]}")


def _shards(root: Path) -> dict[str, str]:
    files = (p for p in root.glob("harvest/*/sources/**/*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(_content(p)).hexdigest() for p in files}


def _content(file: Path) -> bytes:
    """The bytes of a file; of an adapter's record without the seconds that its training took."""
    if file.name != "source.json":
        return file.read_bytes()
    return json.dumps(_without_seconds(json.loads(file.read_bytes()))).encode()


def _without_seconds(told: Any) -> Any:
    if isinstance(told, dict):
        return {key: _without_seconds(value) for key, value in told.items() if key != "seconds"}
    return [_without_seconds(value) for value in told] if isinstance(told, list) else told


def compare_tables(name: str, a: Records, b: Records, found: Compared) -> None:
    """Every value of the rows and columns that both tables have, to the last bit."""
    of_a, of_b = (_by_key(name, records, found) for records in (a, b))
    both = [key for key in of_a if key in of_b]
    if (a or b) and not both:
        found.differences.append(f"{name}: no row is in both tables")
    columns = _columns(of_a.values()) & _columns(of_b.values()) - set(KEYS[name])
    found.only[f"rows of {name}"] = len(of_a) - len(both), len(of_b) - len(both)
    found.only[f"columns of {name}"] = (
        len(_columns(of_a.values()) - _columns(of_b.values())),
        len(_columns(of_b.values()) - _columns(of_a.values())),
    )
    for key in both:
        found.rows += 1
        for column in sorted(columns):
            found.values += 1
            one, other = of_a[key][column], of_b[key][column]
            if type(one) is not type(other) or one != other:
                found.differences.append(f"{name} {' '.join(map(str, key))}: {column} {one!r} and {other!r}")


def _by_key(name: str, records: Records, found: Compared) -> dict[tuple, dict[str, Any]]:
    rows: dict[tuple, dict[str, Any]] = {}
    for record in map(_with_parts, records) if name.startswith("divergence") else records:
        key = tuple(record.get(column) for column in KEYS[name])
        if key in rows:
            found.differences.append(f"{name} {' '.join(map(str, key))}: more than one row")
        rows[key] = record
    return rows


def _with_parts(record: dict[str, Any]) -> dict[str, Any]:
    """A row as it is now, from one that has the parts of its name as endings."""
    whole = {"corpus": ""} | record  # tables of all texts alone had no such column
    return whole if "variant" in record else whole | parse_name(record["metric"])._asdict()


def _columns(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {column for row in rows for column in row}


def compare_roots(a: Path, b: Path, say: Callable[[str], None] = print) -> int:
    """0 where shards and tables are the same, else 1; a root without a table, or two without shards, are a
    difference."""
    found = Compared()
    compare_shards(a, b, found)
    if not found.files:
        found.differences.append("no shards below harvest/*/sources are in both roots")
    for name in KEYS:
        missing = [str(root / name) for root in (a, b) if not (root / name).is_file()]
        if missing:
            found.differences += [f"{path} is not there" for path in missing]
        else:
            compare_tables(name, *(pq.read_table(root / name).to_pylist() for root in (a, b)), found)
    say(found.told())
    return int(bool(found.differences))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tests.same_study ROOT_A ROOT_B")
    sys.exit(compare_roots(*map(Path, sys.argv[1:])))
