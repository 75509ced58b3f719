"""infra/: nothing has a default password, nothing listens beyond its machine or namespace, and names agree
across files."""

import copy
import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = sorted(p for p in (ROOT / "infra/kubernetes").glob("*.yaml") if p.name != "kustomization.yaml")
SCHEMA = yaml.safe_load((Path(__file__).parent / "crd/kuberay.schema.yaml").read_text())
COMPOSE_SERVICE = {
    "image",
    "build",
    "command",
    "environment",
    "volumes",
    "ports",
    "depends_on",
    "healthcheck",
    "restart",
}
COMPOSE_HEALTH = {"test", "interval", "timeout", "retries", "start_period"}
RAY_PODS = {"app.kubernetes.io/created-by": "kuberay-operator"}


def compose() -> dict:
    return yaml.safe_load((ROOT / "infra/mlflow/compose.yaml").read_text())


def resources(kind: str | None = None) -> list[dict]:
    every = [d for path in KUBERNETES for d in yaml.safe_load_all(path.read_text())]
    return [d for d in every if kind in (None, d["kind"])]


def compose_problems(config: dict) -> list[str]:
    """Everything wrong with a compose file, in words."""
    found = [f"unknown key {k}" for k in set(config) - {"name", "services", "volumes"}]
    for name, service in config["services"].items():
        found += [f"{name}: unknown key {k}" for k in set(service) - COMPOSE_SERVICE]
        found += [
            f"{name}: unknown health key {k}" for k in set(service.get("healthcheck", {})) - COMPOSE_HEALTH
        ]
        found += [
            f"{name}: port {p} is open to the network"
            for p in service.get("ports", [])
            if not str(p).startswith("127.0.0.1:")
        ]
        for key, value in service.get("environment", {}).items():
            # ${NAME:?why} makes compose refuse to start; ${NAME}, ${NAME:-x} and a literal do not.
            if re.search("PASSWORD|SECRET|ACCESS_KEY|STORE_URI", key) and not re.search(
                r"\$\{[A-Z0-9_]+:\?", str(value)
            ):
                found.append(f"{name}: {key} has a default or may be empty")
        for other, how in service.get("depends_on", {}).items():
            if other not in config["services"]:
                found.append(f"{name}: waits for {other}, which is not there")
            elif how["condition"] == "service_healthy" and "healthcheck" not in config["services"][other]:
                found.append(f"{name}: waits for the health of {other}, which has no check")
        if "restart" in service and "healthcheck" not in service:
            found.append(f"{name}: nobody sees when it hangs")
        if str(service.get("image", "x:1")).endswith(":latest") or ":" not in service.get("image", "x:1"):
            found.append(f"{name}: any version of the image")
        mounted = {v.split(":")[0] for v in service.get("volumes", []) if not v.startswith((".", "/"))}
        found += [f"{name}: volume {v} is not declared" for v in mounted - set(config.get("volumes", {}))]
    return found


def test_compose_file_is_sound():
    assert compose_problems(compose()) == []


@pytest.mark.parametrize(
    ("path", "value", "finding"),
    [
        (("mlflow", "ports"), ["5000:5000"], "open to the network"),
        (("postgres", "environment"), {"POSTGRES_PASSWORD": "mlflow"}, "has a default"),
        (("postgres", "environment"), {"POSTGRES_PASSWORD": "${POSTGRES_PASSWORD:-mlflow}"}, "has a default"),
        (("postgres", "healthcheck"), {}, "unknown health key"),
        (("mlflow", "depends_on"), {"postgress": {"condition": "service_healthy"}}, "not there"),
        (("objects", "image"), "versity/versitygw", "any version"),
        (("objects", "volumes"), ["object:/data"], "not declared"),
    ],
)
def test_damaged_compose_file_is_found(path: tuple[str, str], value: object, finding: str):
    config = copy.deepcopy(compose())
    config["services"][path[0]][path[1]] = value if value else {"tests": []}
    assert any(finding in p for p in compose_problems(config))


def test_passwords_are_kept_out_of_git():
    assert ".env" in (ROOT / "infra/mlflow/.gitignore").read_text().split()
    assert resources("Secret") == []


def test_everything_lives_in_one_namespace():
    assert {d["metadata"]["namespace"] for d in resources() if d["kind"] != "Namespace"} == {"deltasae"}
    assert [d["metadata"]["name"] for d in resources("Namespace")] == ["deltasae"]


def test_pods_are_sound_and_unprivileged():
    validator = jsonschema.Draft202012Validator({**SCHEMA, "$ref": "#/$defs/podTemplate"})
    workloads = resources("Deployment") + resources("StatefulSet")
    assert {d["metadata"]["name"] for d in workloads} == {"postgres", "redis"}
    for workload in workloads:
        template = workload["spec"]["template"]
        assert [e.message for e in validator.iter_errors(template)] == []
        assert template["metadata"]["labels"] == workload["spec"]["selector"]["matchLabels"]
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "limits" in container["resources"] and "readinessProbe" in container
            for variable in container.get("env", []):
                if "PASSWORD" in variable["name"]:
                    assert "secretKeyRef" in variable["valueFrom"]


def test_services_find_their_pods_and_stay_inside():
    pods = {
        json.dumps(d["spec"]["template"]["metadata"]["labels"]): d
        for d in resources("Deployment") + resources("StatefulSet")
    }
    for service in resources("Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
        container = pods[json.dumps(service["spec"]["selector"])]["spec"]["template"]["spec"]["containers"][0]
        names = {p["name"] for p in container["ports"]} | {p["containerPort"] for p in container["ports"]}
        assert all(p.get("targetPort", p["port"]) in names for p in service["spec"]["ports"])


def covers(rule: dict, port: int) -> bool:
    return isinstance(rule["port"], int) and rule["port"] <= port <= rule.get("endPort", rule["port"])


def admitted(policies: list[dict], pod_labels: dict[str, str], port: int, port_name: str = "") -> list[dict]:
    """The peers that the policies let reach a pod's port; [{}] is everyone."""
    chosen = [
        p["spec"]
        for p in policies
        if p["spec"]["podSelector"].get("matchLabels", {}).items() <= pod_labels.items()
    ]
    if not chosen:
        return [{}]
    peers: list[dict] = []
    for rule in (rule for policy in chosen for rule in policy.get("ingress", [])):
        if "ports" not in rule or any(port_name == p["port"] or covers(p, port) for p in rule["ports"]):
            peers += rule.get("from", [{}])
    return peers


HEAD = {"ray.io/node-type": "head", **RAY_PODS}


def test_only_ray_and_its_operator_reach_the_dashboard():
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    peers = admitted(resources("NetworkPolicy"), HEAD, 8265, "dashboard")
    assert sorted(map(json.dumps, peers)) == sorted(
        map(json.dumps, [{"podSelector": {"matchLabels": RAY_PODS}}, operator])
    )


@pytest.mark.parametrize(
    ("labels", "port"),
    [({"app.kubernetes.io/name": n}, p) for n, p in (("mlflow", 5000), ("postgres", 5432), ("redis", 6379))],
)
def test_stores_are_reached_by_their_one_client(labels: dict[str, str], port: int):
    client = {"app.kubernetes.io/name": "mlflow"} if port == 5432 else RAY_PODS
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    others = [prometheus] if port == 5000 else []  # MLflow's metrics, which ask for the login
    assert admitted(resources("NetworkPolicy"), labels, port) == [
        {"podSelector": {"matchLabels": client}}, *others
    ]  # fmt: skip
    assert admitted(resources("NetworkPolicy"), labels, 22) == []


def test_a_pod_that_no_rule_names_is_closed():
    assert admitted(resources("NetworkPolicy"), {"app": "other"}, 80) == []
    without_default = [p for p in resources("NetworkPolicy") if p["metadata"]["name"] != "refuse-by-default"]
    assert admitted(without_default, {"app": "other"}, 80) == [{}]


def test_prometheus_reads_ports_that_the_ray_pods_have():
    cluster = yaml.safe_load((ROOT / "cluster/kuberay/base/cluster/raycluster.yaml").read_text())["spec"]
    groups = {"head": cluster["headGroupSpec"], "worker": cluster["workerGroupSpecs"][0]}
    for monitor in resources("PodMonitor"):
        node_type = monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"]
        ports = {p["name"] for p in groups[node_type]["template"]["spec"]["containers"][0]["ports"]}
        assert {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} <= ports
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            peers = admitted(
                resources("NetworkPolicy"), {"ray.io/node-type": node_type, **RAY_PODS}, -1, endpoint["port"]
            )
            assert {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
            } in peers


def test_names_agree_with_the_clusters():
    cluster = yaml.safe_load((ROOT / "cluster/kuberay/base/cluster/raycluster.yaml").read_text())["spec"]
    services = {f"{s['metadata']['name']}:{s['spec']['ports'][0]['port']}" for s in resources("Service")}
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] in services
    values = yaml.safe_load((ROOT / "infra/mlflow/values.yaml").read_text())
    server = f"https://{values['fullnameOverride']}:{values['server']['value_options']['port']}"
    for cloud in ("gke", "eks"):
        settings = (ROOT / f"cluster/kuberay/{cloud}/settings/settings.yaml").read_text()
        assert yaml.safe_load(settings)["data"]["tracking-uri"] == server
    accounts = {a["metadata"]["name"] for a in resources("ServiceAccount")}
    assert cluster["headGroupSpec"]["template"]["spec"]["serviceAccountName"] in accounts


def made_secrets(folder: Path, there: str = "") -> tuple[dict[str, dict[str, str]], str]:
    """What infra/kubernetes/secrets.sh creates where the secrets `there` exist: name → key → value; and the
    command lines of kubectl."""
    (folder / "bin").mkdir()
    (folder / "bin/kubectl").write_text(
        f"""#!/bin/bash
echo "$@" >> {folder}/lines
if [ "$3" = get ]; then [[ " {there} " == *" $5 "* ]]; exit; fi
name=$6
mkdir -p {folder}/made/$name
for word in "${{@:7}}"; do word=${{word#--from-file=}}; cp "${{word#*=}}" {folder}/made/$name/"${{word%%=*}}"; done
"""
    )
    (folder / "bin/kubectl").chmod(0o755)
    (folder / "token").write_text("hf_planted\n")
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "HF_TOKEN_PATH": f"{folder}/token",
        "HOME": "/",
    }
    script = ROOT / "infra/kubernetes/secrets.sh"
    subprocess.run(["bash", str(script)], env=environment, check=True, capture_output=True, timeout=60)
    made = {
        secret.name: {key.name: key.read_text() for key in secret.iterdir()}
        for secret in (folder / "made").iterdir()
    }
    return made, (folder / "lines").read_text()


def test_the_script_makes_every_secret_that_pods_name_and_no_value_enters_a_command(tmp_path: Path):
    made, lines = made_secrets(tmp_path)
    text = "".join(p.read_text() for p in KUBERNETES)
    text += (ROOT / "infra/mlflow/values.yaml").read_text()
    text += "".join(p.read_text() for p in (ROOT / "cluster/kuberay/base").rglob("*.yaml"))
    asked = set(re.findall(r"\{name: ([\w-]+), key: ([\w.-]+)", text))
    assert {(name, key) for name, keys in made.items() for key in keys} >= asked
    assert {"deltasae-redis", "deltasae-mlflow", "mlflow-login", "mlflow-tls", "huggingface"} == set(made)
    values = {v for keys in made.values() for v in keys.values()}
    assert len({v for v in values if len(v) == 48}) == 4, "four random values, none used twice"
    assert not any(value.strip() in lines for value in values if value != "deltasae")
    store, login = made["deltasae-mlflow"], made["mlflow-login"]
    assert store["postgres-password"] in store["store-uri"] and store["store-uri"] in store["auth.ini"]
    assert f"admin_password = {login['password']}" in store["auth.ini"].splitlines()
    assert made["huggingface"] == {"token": "hf_planted"}


def test_the_script_leaves_what_is_there(tmp_path: Path):
    made, _ = made_secrets(tmp_path, there="deltasae-mlflow mlflow-login deltasae-redis")
    assert set(made) == {"mlflow-tls", "huggingface"}


CHART = yaml.safe_load((Path(__file__).parent / "crd/mlflow-chart.schema.yaml").read_text())


def test_mlflows_values_have_only_keys_that_its_chart_reads():
    values = yaml.safe_load((ROOT / "infra/mlflow/values.yaml").read_text())
    validator = jsonschema.Draft202012Validator(CHART)
    assert [e.message for e in validator.iter_errors(values)] == []
    for damaged in ({**values, "tlss": {}}, {**values, "mlflow": {"artifactDestination": "s3://x"}}):
        assert list(validator.iter_errors(damaged))


def test_mlflow_has_tls_a_login_and_no_secret_of_its_values():
    values = yaml.safe_load((ROOT / "infra/mlflow/values.yaml").read_text())
    assert values["tls"] == {"enabled": True, "secretName": "mlflow-tls"}
    assert values["server"]["value_options"]["app_name"] == "basic-auth"
    for variable in values["env"]:
        if re.search("PASSWORD|SECRET", variable["name"]):
            assert "secretKeyRef" in variable["valueFrom"]
    assert "secretKeyRef" in values["mlflow"]["backendStoreUriFrom"]
    (monitor,) = resources("ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["port"] == "https"


AWS = {p.stem: json.loads(p.read_text()) for p in (ROOT / "infra/aws").glob("*.json")}


def test_roles_may_do_what_is_needed_and_reach_one_bucket():
    import botocore.session

    bucket, head = AWS["bucket-policy"]["Statement"], AWS["head-policy"]["Statement"]
    assert {r for s in bucket for r in [s["Resource"]]} == {
        "arn:aws:s3:::my-bucket",
        "arn:aws:s3:::my-bucket/*",
    }
    actions = {a for policy in AWS.values() for s in policy.get("Statement", []) for a in _list(s["Action"])}
    assert not [a for a in actions if a == "*" or a.endswith(":*")]
    # Amazon's own names of its operations: a misspelt one is granted to nobody, without a word
    services = {"ec2": "ec2", "ssm": "ssm", "ecr": "ecr", "sts": "sts"}
    for action in actions - {"ec2:Describe*"}:
        service, _, name = action.partition(":")
        if service in services:
            model = botocore.session.get_session().get_service_model(services[service])
            assert name in model.operation_names, action
    ending = next(s for s in head if "ec2:TerminateInstances" in s["Action"])
    assert ending["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "deltasae"}}
    launcher = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())
    profiles = {
        t["node_config"]["IamInstanceProfile"]["Name"] for t in launcher["available_node_types"].values()
    }
    script = (ROOT / "infra/aws/roles.sh").read_text()
    assert launcher["cluster_name"] == "deltasae" and all(name in script for name in profiles)


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize(
    "script", ["infra/aws/roles.sh", "infra/gcp/roles.sh", "infra/kubernetes/secrets.sh"]
)
def test_scripts_are_bash(script: str):
    done = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "set -euo pipefail" in (ROOT / script).read_text()
