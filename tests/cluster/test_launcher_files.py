"""cluster/aws.yaml and gcp.yaml, checked as far as they can be without a cloud: Ray's own schema, what that
schema lets pass, and Amazon's API model. `ray up` against the real clouds is not tested here."""

import copy
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VARIANTS = ("aws", "gcp")
# What compute.instances.insert takes (Google ships no offline model of its API): a typo here would be refused
# only at launch.
GCP_INSTANCE = {
    "machineType",
    "disks",
    "metadata",
    "serviceAccounts",
    "scheduling",
    "networkInterfaces",
    "tags",
    "labels",
}
GCP_SCHEDULING = {
    "provisioningModel",
    "instanceTerminationAction",
    "automaticRestart",
    "onHostMaintenance",
    "preemptible",
}


def load(variant: str) -> dict:
    return yaml.safe_load((ROOT / f"cluster/{variant}.yaml").read_text())


def ray_start_flags(commands: list[str]) -> dict:
    """The flags of the one `ray start`, parsed by Ray's own command line; raises on a flag that Ray has
    not."""
    from ray.scripts.scripts import start

    (line,) = [c for c in commands if c.startswith("ray start")]
    return start.make_context("start", shlex.split(line)[2:]).params


def environment(options: list[str]) -> dict[str, str]:
    return dict(o.removeprefix("--env=").split("=", 1) for o in options if o.startswith("--env="))


def problems(cfg: dict) -> list[str]:
    """Everything wrong with a launcher file, in words."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    found: list[str] = []

    def check(ok: bool, what: str) -> None:
        if not ok:
            found.append(what)

    try:
        validate_config(prepare_config(copy.deepcopy(cfg)))
    except Exception as e:
        return [f"Ray refuses it: {e}"]

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    check(
        set(cfg["provider"]) <= set(schema["properties"]["provider"]["properties"]),
        "a provider key that Ray does not know",
    )

    head = cfg["available_node_types"][cfg["head_node_type"]]
    workers = [t for name, t in cfg["available_node_types"].items() if name != cfg["head_node_type"]]
    check(head["resources"] == {"CPU": 0}, "tasks may run on the head")
    check(not is_spot(head), "the head is on spot")
    for worker in workers:
        check(worker["min_workers"] == 0 < worker["max_workers"], "workers do not start from none")
        check(
            all(worker["resources"].get(r, 0) > 0 for r in ("CPU", "GPU", "memory")),
            "a resource that the autoscaler cannot see",
        )
        check(is_spot(worker), "workers are not on spot")
    check(0 < cfg.get("idle_timeout_minutes", 0) <= 30, "idle machines are kept")

    try:
        head_flags, worker_flags = (
            ray_start_flags(cfg.get(f"{n}_start_ray_commands", [])) for n in ("head", "worker")
        )
    except Exception as e:
        return [*found, f"ray start: {e}"]
    check(head_flags["dashboard_host"] == "127.0.0.1", "the dashboard is open to the network")
    check(
        head_flags["head"] and head_flags["autoscaling_config"] == "~/ray_bootstrap_config.yaml",
        "the head does not autoscale",
    )
    check(worker_flags["address"] == "$RAY_HEAD_IP:6379", "workers do not find the head")
    check("0.0.0.0" not in json.dumps(cfg), "something listens on every interface")

    env = environment(cfg["docker"].get("run_options", []))
    check(env.get("RAY_AUTH_MODE") == "token", "no token authentication on some node")
    check(
        str(Path(env.get("RAY_AUTH_TOKEN_PATH", "/")).parent) in cfg.get("file_mounts", {}),
        "the token is not brought to every node",
    )
    check(env.get("RAY_USAGE_STATS_ENABLED") == "0", "usage is reported")
    check(
        env.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S") == "900", "Train gives up before a machine can come"
    )
    check(
        str(Path(env.get("HF_TOKEN_PATH", "/")).parent) in cfg.get("file_mounts", {}),
        "no node finds the model hub's token",
    )
    check("HF_TOKEN" not in env and "hf_" not in json.dumps(cfg), "the model hub's token is in the open")
    places = environment(cfg["docker"].get("head_run_options", []))
    check(
        {"DELTASAE_STORAGE_ROOT", "DELTASAE_TRACKING_URI"} <= set(places), "a job without words has no place"
    )
    check("--volume=deltasae-models:/models" in cfg["docker"]["run_options"], "no cache of models")
    for group in ("head", "worker"):
        own = environment(cfg["docker"].get(f"{group}_run_options", []))
        check(not set(own) & set(env), f"{group}_run_options override what holds on every node")
    setup = [cfg.get(f"{n}setup_commands") for n in ("", "head_", "worker_")]
    check(setup == [[], [], []], "Ray's defaults would install another Ray")
    return found


def is_spot(node_type: dict) -> bool:
    node = node_type["node_config"]
    markets = (
        node.get("InstanceMarketOptions", {}).get("MarketType"),
        node.get("scheduling", {}).get("provisioningModel"),
    )
    return markets in {("spot", None), (None, "SPOT")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_launcher_file_is_sound(variant: str):
    assert problems(load(variant)) == []


def rename(section: str, old: str, new: str) -> Callable[[dict], None]:
    def apply(cfg: dict) -> None:
        cfg[section][new] = cfg[section].pop(old)

    return apply


def drop(*path: str) -> Callable[[dict], None]:
    def apply(cfg: dict) -> None:
        for key in path[:-1]:
            cfg = cfg[key]
        del cfg[path[-1]]

    return apply


def replace(old: str, new: str) -> Callable[[dict], None]:
    def apply(cfg: dict) -> None:
        text = yaml.safe_dump(cfg, width=10_000)
        assert old in text
        cfg.clear()
        cfg.update(yaml.safe_load(text.replace(old, new)))

    return apply


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (rename("provider", "availability_zone", "availabilty_zone"), "provider key"),
        (rename("docker", "run_options", "run_option"), "Ray refuses it"),
        (drop("head_start_ray_commands"), "ray start"),
        (replace("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"), "dashboard is open"),
        (replace(" --dashboard-host=127.0.0.1", " --dashbord-host=127.0.0.1"), "ray start"),
        (replace("--env=RAY_AUTH_MODE=token", "--env=RAY_AUTH_MODE=disabled"), "no token authentication"),
        (drop("file_mounts"), "token is not brought"),
        (
            replace("--env=HF_TOKEN_PATH=/etc/ray-token/hub_token", "--env=X=1"),
            "no node finds the model hub's token",
        ),
        (
            replace("--env=HF_TOKEN_PATH=/etc/ray-token/hub_token", "--env=HF_TOKEN=hf_abc"),
            "token is in the open",
        ),
        (drop("available_node_types", "gpu", "resources", "GPU"), "autoscaler cannot see"),
        (replace("min_workers: 0", "min_workers: 1"), "start from none"),
        (drop("available_node_types", "gpu", "node_config"), "Ray refuses it"),
        (drop("setup_commands"), "another Ray"),
        (replace("DELTASAE_TRACKING_URI", "TRACKING_URI"), "has no place"),
    ],
)
def test_damaged_launcher_file_is_found(variant: str, damage: Callable[[dict], None], finding: str):
    cfg = load(variant)
    damage(cfg)
    assert any(finding in p for p in problems(cfg)), problems(cfg)


def test_the_hub_reads_its_token_from_the_file_that_launchers_mount(tmp_path: Path):
    """What `--env=HF_TOKEN_PATH` comes to in a container: the library that downloads models finds the token,
    and none without the file."""
    name = Path(environment(load("aws")["docker"]["run_options"])["HF_TOKEN_PATH"]).name
    code = "from huggingface_hub import get_token; print(get_token())"
    env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")} | {
        "HF_TOKEN_PATH": str(tmp_path / name)
    }
    found = []
    for token in (None, "hf_from_the_file"):
        if token:
            (tmp_path / name).write_text(f"{token}\n")
        found.append(
            subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
            ).stdout.strip()
        )
    assert found == ["None", "hf_from_the_file"]


def test_amazon_knows_every_field_of_the_machines():
    import botocore.session
    from botocore.validate import ParamValidator

    shape = (
        botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    )
    for node_type in load("aws")["available_node_types"].values():
        request = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        assert ParamValidator().validate(request, shape).generate_report() == ""
        assert node_type["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


def test_google_machines_have_only_known_fields_and_one_project():
    cfg = load("gcp")
    assert cfg["provider"]["availability_zone"].startswith(cfg["provider"]["region"])
    for node_type in cfg["available_node_types"].values():
        node = node_type["node_config"]
        assert set(node) <= GCP_INSTANCE
        assert set(node.get("scheduling", {})) <= GCP_SCHEDULING
        for account in node.get("serviceAccounts", []):
            assert account["email"].endswith(f"@{cfg['provider']['project_id']}.iam.gserviceaccount.com")


def test_ray_launches_head_on_demand_and_workers_on_spot_in_a_simulated_amazon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Ray's own AWS code, through boto3, against moto: keys, profiles, subnets, security group,
    run-instances."""
    for key, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        region = load("aws")["provider"]["region"]
        ec2, iam = (boto3.client(service, region_name=region) for service in ("ec2", "iam"))
        for profile in ("deltasae-head", "deltasae-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        cfg = bootstrap_aws(prepare_config(load("aws")))
        provider = AWSNodeProvider(cfg["provider"], cfg["cluster_name"])
        for name, kind in (("head", "head"), ("gpu", "worker")):
            node_config = copy.deepcopy(cfg["available_node_types"][name]["node_config"])
            provider.create_node(node_config, {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)

        machines = {
            i["InstanceType"]: i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]
        }
        assert machines["m6i.xlarge"].get("InstanceLifecycle") is None
        assert machines["g6e.12xlarge"]["InstanceLifecycle"] == "spot"
        assert machines["g6e.12xlarge"]["IamInstanceProfile"]["Arn"].endswith("/deltasae-worker")
        groups = ec2.describe_security_groups(
            GroupIds=[g["GroupId"] for g in machines["m6i.xlarge"]["SecurityGroups"]]
        )["SecurityGroups"]
        from_anywhere = [r["FromPort"] for g in groups for r in g["IpPermissions"] if r["IpRanges"]]
        assert from_anywhere == [22]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_a_user_s_own_stands_in_one_block(variant: str):
    text = (ROOT / f"cluster/{variant}.yaml").read_text()
    block, mark, rest = text.partition("# ── The rest needs no change")
    rest = "\n".join(line.partition("#")[0] for line in rest.splitlines())
    own = "my-bucket", "my-project", "registry.example.com", "10.0.0.5", "us-west-2", "us-central1"
    assert mark and "# ── Yours to set" in block
    assert [word for word in own if word in rest] == []
    expanded = yaml.safe_dump(load(variant)["docker"]) + yaml.safe_dump(load(variant)["provider"])
    assert all(word in expanded for word in own if word in block and word != "my-project")


SLURM = ROOT / "cluster/slurm/sweep.sbatch"


def test_the_slurm_script_starts_ray_on_every_node_and_the_study_on_the_first(tmp_path: Path):
    """Run with stand-ins for Slurm's commands; the line that they get goes through Ray's own parser."""
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    text = SLURM.read_text()
    first = next(i for i, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in text.splitlines()[first:]), (
        "Slurm would not read it"
    )
    for name, body in (("srun", 'printf "%s\\n" "$@"'), ("scontrol", "echo node-7; echo node-8")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "48", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(SLURM), "layers=[1,2]"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    ray, command, *words = done.stdout.splitlines()
    at = words.index("--")
    assert [ray, command] == ["ray", "symmetric-run"]
    assert words[at + 1 :] == ["python", "jobs/sweep.py", "layers=[1,2]"]
    params = symmetric_run.make_context("_", words[:at], resilient_parsing=True).params
    assert (params["address"], params["min_nodes"]) == ("node-7:6379", 2)
    for start in (["--head", "--port=6379"], ["--address=node-7:6379"]):
        flags = ray_start_flags(
            [shlex.join(["ray", "start", *start, *curate_and_validate_ray_start_args(words[:at])])]
        )
        assert (flags["num_cpus"], flags["num_gpus"]) == (48, 4)
    token = tmp_path / ".ray/deltasae/auth_token"
    assert len(token.read_text().strip()) == 64 and token.stat().st_mode & 0o077 == 0
    assert all(
        f"export {name}=" in text
        for name in ("DELTASAE_STORAGE_ROOT", "DELTASAE_TRACKING_URI", "RAY_AUTH_MODE")
    )
