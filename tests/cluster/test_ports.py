"""A study on one machine is reached from that machine only: tried from a second address of a network of its
own."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.namespaces import isolated, run_isolated

LAN = "10.11.12.13"
NETWORK = (
    ["ip", "link", "add", "name", "lan0", "type", "veth", "peer", "name", "lan1"],
    ["ip", "link", "set", "lan1", "up"],
    ["ip", "address", "add", f"{LAN}/24", "dev", "lan0"], ["ip", "link", "set", "lan0", "up"],
    ["ip", "route", "add", "default", "via", "10.11.12.1"],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not isolated(), reason="no namespaces here: needs root, util-linux and iproute2")
def test_no_port_of_a_local_study_answers_at_the_machine_s_own_address() -> None:
    printed = run_isolated(
        *NETWORK, [sys.executable, "-m", "tests.cluster.open_ports", LAN], env={}, timeout=300
    )
    told = json.loads(printed.splitlines()[-1])
    assert len(told["listening"]) > 10, "Ray, a gang and Ray Train listen"
    assert told["beyond"] == [] and told["answers"] == []


ROOT = Path(__file__).parents[2]
NUMBERED = re.compile(r"^\| (\d+)(?:–(\d+))? \| ([^|]+) \|", re.M)


def documented() -> dict[str, set[tuple[int, int]]]:
    """Who listens → the ports that docs/ports.md lists for clusters."""
    found: dict[str, set[tuple[int, int]]] = {}
    for first, last, who in NUMBERED.findall((ROOT / "docs/ports.md").read_text()):
        found.setdefault(who.split(":")[0].strip(), set()).add((int(first), int(last or first)))
    return found


def admitted_ports(*, metrics: bool) -> dict[str, set[tuple[int, int]]]:
    """Who listens → the ports that the network policies let anybody reach."""
    found: dict[str, set[tuple[int, int]]] = {}
    names = {"metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}
    for policy in yaml.safe_load_all((ROOT / "infra/kubernetes/network-policy.yaml").read_text()):
        labels = policy["spec"]["podSelector"].get("matchLabels", {})
        who = labels.get("app.kubernetes.io/name", "Ray")
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:  # a rule without ports would admit all
                number = names.get(port["port"], port["port"])
                if metrics == (port["port"] in names):
                    found.setdefault(who, set()).add((number, port.get("endPort", number)))
    return found


def test_the_network_policy_admits_the_documented_ports_and_no_others() -> None:
    listed = documented()
    assert listed.pop("Ray's metrics") == admitted_ports(metrics=True)["Ray"]
    assert listed == admitted_ports(metrics=False)


@pytest.mark.parametrize(
    "name", ["kuberay/base/cluster/raycluster.yaml", "kuberay/base/job/rayjob.yaml", "aws.yaml", "gcp.yaml"]
)
def test_every_node_opens_documented_ports_only(name: str) -> None:
    file = yaml.safe_load((ROOT / "cluster" / name).read_text())
    if name.startswith("kuberay"):
        spec = file["spec"].get("rayClusterSpec", file["spec"])
        nodes = [
            spec["headGroupSpec"]["rayStartParams"],
            *(g["rayStartParams"] for g in spec["workerGroupSpecs"]),
        ]
    else:
        lines = [
            c
            for group in ("head", "worker")
            for c in file[f"{group}_start_ray_commands"]
            if c.startswith("ray start")
        ]
        nodes = [
            dict(w.removeprefix("--").split("=", 1) for w in shlex.split(line) if "=" in w) for line in lines
        ]
    for node in nodes:
        numbers = {key: int(value) for key, value in node.items() if key.endswith("port")}
        assert set(numbers) >= {
            "object-manager-port", "node-manager-port", "runtime-env-agent-port", "dashboard-agent-grpc-port",
            "min-worker-port", "max-worker-port"
        }, "a port that is not fixed is chosen at random"  # fmt: skip
        open_to_ray = documented()["Ray"] | documented()["Ray's metrics"]
        assert all(any(first <= n <= last for first, last in open_to_ray) for n in numbers.values())
        assert (numbers["min-worker-port"], numbers["max-worker-port"]) in open_to_ray
