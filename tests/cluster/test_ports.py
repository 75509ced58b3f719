"""A study on one machine is reached from that machine only: tried from a second address of a network of its own."""

import json
import sys

import pytest

from tests.cluster.namespaces import isolated, run_isolated

LAN = "10.11.12.13"
NETWORK = (
    ["ip", "link", "add", "name", "lan0", "type", "veth", "peer", "name", "lan1"], ["ip", "link", "set", "lan1", "up"],
    ["ip", "address", "add", f"{LAN}/24", "dev", "lan0"], ["ip", "link", "set", "lan0", "up"], ["ip", "route", "add", "default", "via", "10.11.12.1"],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not isolated(), reason="no namespaces here: needs root, util-linux and iproute2")
def test_no_port_of_a_local_study_answers_at_the_machine_s_own_address() -> None:
    printed = run_isolated(*NETWORK, [sys.executable, "-m", "tests.cluster.open_ports", LAN], env={}, timeout=300)
    told = json.loads(printed.splitlines()[-1])
    assert len(told["listening"]) > 10, "Ray, a gang and Ray Train listen"
    assert told["beyond"] == [] and told["answers"] == []
