"""The files of finished studies, written by the code that studies write them with, from figures that a test
chooses."""

from collections.abc import Mapping
from pathlib import Path

from deltasae_ray.analyses.table import DivergenceRow, write_table
from deltasae_ray.metrics.catalogue import parse_name
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.report.inputs import AdapterFacts, CorpusFacts, ReportInputs, VerdictLines
from deltasae_ray.storage import Storage

SHARE = "missing_share"
LOUD = Measure(0.8, ci=(0.7, 0.9), n=40)
CALM = Measure(0.2, ci=(0.1, 0.3), n=40)
ACROSS = Measure(0.5, ci=(0.4, 0.6), n=40)
UNKNOWN = undefined("too few directions")

Figures = Mapping[str, Measure]


def row(
    adapter: str, layer: int, name: str, measure: Measure, *, d_sae: int = 64, seed: int = 0
) -> DivergenceRow:
    return DivergenceRow(
        adapter, layer, d_sae, 4, "topk", seed, 2, 0, "toy reference (1,200 tokens)", measure=measure,
        **parse_name(name)._asdict(),
    )  # fmt: skip


def rows(adapters: Mapping[str, Figures], layers: tuple[int, ...] = (1,)) -> list[DivergenceRow]:
    return [
        row(adapter, layer, name, measure)
        for adapter, figures in adapters.items()
        for layer in layers
        for name, measure in figures.items()
    ]


def finished_study(
    root: Path, adapters: Mapping[str, Figures], layers: tuple[int, ...] = (1,), *more: DivergenceRow
) -> Storage:
    """A root with the files that a gate reads; every adapter has its figures at every layer."""
    storage, table = Storage(str(root)), [*rows(adapters, layers), *more]
    write_table(storage, table)
    inputs = ReportInputs(
        title="What the adapters added",
        created="2026-01-01 10:00",
        model="owner/tiny",
        reference="toy reference (1,200 tokens)",
        layers=layers,
        corpora=(CorpusFacts("domain", True, {"fit": 2400}, {"fit": 80}),),
        adapters=(
            *(AdapterFacts(name, 2, 0) for name in adapters),
            AdapterFacts("random", 2, None, control=True),
        ),
        verdicts=tuple(
            VerdictLines(f"{name}, layer 1: PARTLY VISIBLE", "PARTLY VISIBLE", ()) for name in adapters
        ),
        rows=tuple(table),
        config="model: {base: owner/tiny}\n",
        digests={"model": "m" * 16, "corpus": "c" * 16}
        | {f"adapter {name}": f"{i:016x}" for i, name in enumerate(adapters)},
        versions={"python": "3.11"},
    )
    storage.write_bytes("report.json", inputs.to_json().encode())
    storage.write_bytes("report.html", b"<!doctype html><title>page</title>")
    return storage


def policy_file(folder: Path, *rules: str, head: str = "") -> Path:
    """A policy whose rules are called a, b, …"""
    lines = [head, "rules:"] + [
        f"  - {{name: {chr(97 + i)}, when: '{when}'}}" for i, when in enumerate(rules)
    ]
    path = folder / "policy.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
