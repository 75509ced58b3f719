"""The head of cluster/aws.yaml and gcp.yaml, started for real with their `ray start` and environment, but for
the machine around it."""

import json
import shlex
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.cluster.namespaces import RAY, isolated, run_isolated

ROOT = Path(__file__).parents[2]
LAN = "10.11.12.13"  # an address of the namespace's own loopback device, in place of the machine's
PROBE = """
import json, sys, urllib.error, urllib.request
def status(address, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(f"http://{address}:8265/api/jobs/", headers=headers), timeout=20).status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError as e:
        return type(e.reason if isinstance(e, urllib.error.URLError) else e).__name__
lan, token = sys.argv[1:]
here = "127.0.0.1"
print(json.dumps({"none": status(here), "wrong": status(here, "0" * 32), "right": status(here, token), "lan": status(lan, token)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not isolated(), reason="no namespaces here: needs root, util-linux and iproute2")
def test_dashboard_is_on_loopback_and_asks_for_the_token():
    cfg, other = (yaml.safe_load((ROOT / f"cluster/{cloud}.yaml").read_text()) for cloud in ("aws", "gcp"))
    assert cfg["docker"]["run_options"] == other["docker"]["run_options"], "one head stands for both"
    assert cfg["head_start_ray_commands"] == other["head_start_ray_commands"], "one head stands for both"
    env = dict(
        o.removeprefix("--env=").split("=", 1) for o in cfg["docker"]["run_options"] if o.startswith("--env=")
    )
    (line,) = [c for c in cfg["head_start_ray_commands"] if c.startswith("ray start")]
    words = [
        w for w in shlex.split(line)[1:] if not w.startswith("--autoscaling-config")
    ]  # would call the cloud
    cpus = cfg["available_node_types"]["head"]["resources"]["CPU"]

    # Ray's socket paths must be short, so not pytest's folder.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        token = Path(folder) / "auth_token"
        token.write_text("5" * 32)
        here = [
            f"--num-cpus={cpus}",
            f"--node-ip-address={LAN}",
            f"--temp-dir={folder}/r",
            "--object-store-memory=100000000",
        ]
        printed = run_isolated(
            ["ip", "address", "add", f"{LAN}/32", "dev", "lo"],
            [RAY, *words, *here],
            [sys.executable, "-c", PROBE, LAN, token.read_text()],
            env={**env, "RAY_AUTH_TOKEN_PATH": str(token)},
            timeout=600,
        )

    answers = json.loads(printed.splitlines()[-1])
    assert answers == {"none": 401, "wrong": 403, "right": 200, "lan": "ConnectionRefusedError"}
