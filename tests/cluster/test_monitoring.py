"""The dashboard and the alerts read metrics that a study shows; what Ray makes of one is read from its port."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from deltasae_ray import gauges
from deltasae_ray.logs import labelled
from deltasae_ray.runtime.node_types import NodeType
from deltasae_ray.study.prices import DOLLARS_PER_CPU_HOUR, DOLLARS_PER_GPU_HOUR, dollars_per_hour

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "infra/monitoring/dashboard.json").read_text())
RULES = yaml.safe_load((ROOT / "infra/kubernetes/alerts.yaml").read_text())["spec"]
SERIES = {shown.series(name): ("run", "stage", *shown.tags) for name, shown in gauges.ALL.items()}


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return panels + [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


def test_every_metric_is_on_the_dashboard_and_nothing_else_is_read() -> None:
    shown = {name for panel in DASHBOARD["panels"] for t in panel["targets"] for name in named(t["expr"])}
    assert shown == set(SERIES), "a metric without a panel, or a panel without a metric"
    assert len(DASHBOARD["panels"]) == 10
    assert all(set(named(expression)) <= set(SERIES) for expression in expressions())
    for expression in expressions():
        tags = {"run", *(tag for name in named(expression) for tag in SERIES[name])}
        grouped = {t for by in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for t in by.split(", ")}
        assert grouped <= tags, expression


def named(expression: str) -> list[str]:
    return re.findall(r"\bray_\w+", expression)


def test_every_alert_says_what_to_do() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    assert all({"summary", "remedy"} <= rule["annotations"].keys() for rule in rules)


def series(name: str, values: str, **tags: str) -> dict:
    return {"series": name + "{" + ",".join(f'{k}="{v}"' for k, v in tags.items()) + "}", "values": values}


FIRING = {
    "NoUnitIsDone": [series("ray_deltasae_last_unit", "0x60", run="1"), series("ray_deltasae_queue", "4x60", run="1", stage="harvest")],
    "GangsFail": [series("ray_deltasae_restarts_total", "0+1x60", run="1", reason="fault")],
    "NodesAreTakenBack": [series("ray_deltasae_restarts_total", "0+1x60", run="1", reason="drained")],
    "DeltasNearRounding": [series("ray_deltasae_snr", "80x60", run="1", adapter="r4")],
    "DictionariesDie": [series("ray_deltasae_dead_share", "0.7x60", run="1", adapter="r4")],
}  # fmt: skip
CALM = [
    series("ray_deltasae_last_unit", "0+60x60", run="1"), series("ray_deltasae_queue", "4x60", run="1"),
    series("ray_deltasae_restarts_total", "2x60", run="1", reason="fault"),
    series("ray_deltasae_snr", "900x60", run="1", adapter="r4"),
    series("ray_deltasae_dead_share", "0.1x60", run="1", adapter="r4"),
]  # fmt: skip


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="no promtool here: it comes with Debian's prometheus"
)
def test_prometheus_fires_each_alert_when_it_should_and_none_when_all_is_well(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    alerts = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
    assert set(FIRING) == alerts
    tests = []
    for fires, given in [*FIRING.items(), ("", CALM)]:
        asked = []
        for alert in sorted(alerts):
            tags = {m[0]: m[1] for m in re.findall(r'(run|adapter)="([^"]+)"', given[0]["series"])}
            rule = next(r for g in RULES["groups"] for r in g["rules"] if r["alert"] == alert)
            told = {
                k: v.replace("{{ $labels.run }}", tags["run"]).replace(
                    "{{ $labels.adapter }}", tags.get("adapter", "")
                )
                for k, v in rule["annotations"].items()
            }
            expected = [{"exp_labels": {**rule["labels"], **tags}, "exp_annotations": told}]
            asked.append(
                {"eval_time": "55m", "alertname": alert, "exp_alerts": expected if alert == fires else []}
            )
        tests.append({"interval": "1m", "input_series": given, "alert_rule_test": asked})
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_list_prices_count_gpus_and_elsewhere_cpus() -> None:
    gpus = NodeType("gpu", 48, 4, gpu="l4")
    assert dollars_per_hour([gpus, gpus]) == pytest.approx(8 * DOLLARS_PER_GPU_HOUR["l4"])
    assert dollars_per_hour([NodeType("cpu", 8)]) == pytest.approx(8 * DOLLARS_PER_CPU_HOUR)


def test_where_no_ray_runs_nothing_is_shown_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    gauges.show("queue", 3)
    gauges.count("tokens", 3, gang="x")


@pytest.mark.slow
def test_prometheus_finds_what_a_study_shows_at_rays_port(ray_cluster: None) -> None:
    import ray

    (node,) = [n for n in ray.nodes() if n["Alive"]]
    with labelled(run="01", stage="harvest"):
        gauges.show("queue", 7)
        gauges.count("tokens", 1024, gang="ab12")
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end, text = time.monotonic() + 90, ""
    while "ray_deltasae_tokens" not in text and time.monotonic() < end:
        time.sleep(1)
        text = urllib.request.urlopen(address, timeout=10).read().decode()
    found = {line.partition("{")[0]: line for line in text.splitlines() if line.startswith("ray_deltasae_")}
    assert {"ray_deltasae_queue", "ray_deltasae_tokens_total"} <= set(found), sorted(found)
    queue, tokens = found["ray_deltasae_queue"], found["ray_deltasae_tokens_total"]
    assert 'run="01"' in queue and 'stage="harvest"' in queue and queue.endswith(" 7.0")
    assert 'gang="ab12"' in tokens and tokens.endswith(" 1024.0")
