"""cluster/kuberay, as kustomize renders it: a closed schema of KubeRay's API (crd/kuberay.schema.yaml), Ray's
own autoscaler, and this package's command line read it. That an operator starts the pods is not tested
here."""

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.cluster.rendered import CLOUDS, documents, file, kustomize, render

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((Path(__file__).parent / "crd/kuberay.schema.yaml").read_text())
PARTS = {"RayCluster": "cluster", "RayJob": "job"}


def load(kind: str, cloud: str = "gke") -> dict:
    (resource,) = documents(cloud, PARTS[kind])
    return resource


def cluster_spec(resource: dict) -> dict:
    return resource["spec"]["rayClusterSpec"] if resource["kind"] == "RayJob" else resource["spec"]


def schema_errors(resource: dict) -> list[str]:
    validator = jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{resource['kind']}"})
    return [f"{e.json_path}: {e.message}" for e in validator.iter_errors(resource)]


def problems(resource: dict) -> list[str]:
    """Everything wrong with a resource, in words."""
    import ray

    found = schema_errors(resource)
    if found:
        return found

    def check(ok: bool, what: str) -> None:
        if not ok:
            found.append(what)

    spec = cluster_spec(resource)
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    check(spec.get("authOptions", {}).get("mode") == "token", "no token authentication")
    check(spec.get("rayVersion") == ray.__version__, "another Ray than the one installed")
    check(spec.get("enableInTreeAutoscaling") is True, "no autoscaling")
    check(spec.get("autoscalerOptions", {}).get("version") == "v2", "not the second autoscaler")
    check(head.get("rayStartParams", {}).get("num-cpus") == "0", "tasks may run on the head")
    check(
        head.get("serviceType", "ClusterIP") == "ClusterIP" and not head.get("enableIngress"),
        "the head is reachable from outside",
    )
    check("0.0.0.0" not in json.dumps(resource), "something listens on every interface")
    for group in workers:
        check(
            group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"],
            "workers do not start from none",
        )
    for group in (head, *workers):
        pod = group["template"]["spec"]
        env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        check(env.get("RAY_USAGE_STATS_ENABLED") == "0", "usage is reported")
        check(
            env.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S") == "900",
            "Train gives up before a node can come",
        )
        secret = next(
            (
                e["valueFrom"]["secretKeyRef"]
                for e in pod["containers"][0]["env"]
                if e["name"] == "HF_TOKEN" and "valueFrom" in e
            ),
            {},
        )
        check(
            secret.get("optional") is True,
            "the model hub's token is missing, in the open, or needed for open models",
        )
        # KubeRay sets these itself, and leaves alone what it finds.
        check(not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(env), "the token is overridden")
        user = (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"])
        check(user == (True, 1000), "pods run as another user than the image's")
    if resource["kind"] == "RayCluster":
        check(
            head["rayStartParams"].get("dashboard-host") == "127.0.0.1",
            "the dashboard is open to the pod network",
        )
        password = spec.get("gcsFaultToleranceOptions", {}).get("redisPassword", {})
        check(
            "secretKeyRef" in password.get("valueFrom", {}),
            "a lost head loses all, or Redis has no secret password",
        )
    else:
        check("activeDeadlineSeconds" in resource["spec"], "a job that hangs never ends")
        check(resource["spec"].get("shutdownAfterJobFinishes") is True, "the cluster outlives its job")
        check(resource["spec"].get("submissionMode") == "SidecarMode", "another pod needs the dashboard")
    return found


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("kind", PARTS)
def test_resource_is_sound(kind: str, cloud: str):
    assert problems(load(kind, cloud)) == []


@pytest.mark.skipif(not kustomize(), reason="no kubectl and no kustomize here")
@pytest.mark.parametrize("part", ["platform", "cluster", "job"])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_is_kept_is_what_kustomize_renders(cloud: str, part: str):
    kept = file(cloud, part).read_text()
    assert render(cloud, part) == kept, "python -m tests.cluster.rendered"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_everything_that_is_a_user_s_own_comes_from_one_file(cloud: str):
    own = yaml.safe_load((ROOT / f"cluster/kuberay/{cloud}/settings/settings.yaml").read_text())["data"]
    rendered = "".join(file(cloud, part).read_text() for part in ("platform", "cluster", "job"))
    assert own.keys() == {"image", "storage-root", "tracking-uri", "identity"}
    assert "set-in-settings" not in rendered and "kind: ConfigMap" not in rendered
    for kind in PARTS:
        spec = cluster_spec(load(kind, cloud))
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            env = {e["name"]: e.get("value") for e in container["env"]}
            assert container["image"] == own["image"]
            assert env["DELTASAE_STORAGE_ROOT"] == own["storage-root"]
            assert env["DELTASAE_TRACKING_URI"] == own["tracking-uri"]
    (account,) = [d for d in documents(cloud, "platform") if d["kind"] == "ServiceAccount"]
    assert list(account["metadata"]["annotations"].values()) == [own["identity"]]
    base = "".join(p.read_text() for p in (ROOT / "cluster/kuberay/base").rglob("*.yaml"))
    assert not re.search(r"my-bucket|my-project|123456789012|gs://|s3://|cloud\.google|amazonaws", base)


def test_the_command_of_the_job_s_file_gives_each_study_a_name_of_its_own():
    text = (ROOT / "cluster/kuberay/base/job/rayjob.yaml").read_text()
    script = re.search(r"\| sed '([^']+)' \| kubectl create -f -", text)
    assert script
    made = subprocess.run(
        ["sed", script[1]], input=file("gke", "job").read_text(), capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(made.stdout)["metadata"] == {"generateName": "study-", "namespace": "deltasae"}


def edit(change: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda resource: change(cluster_spec(resource))


def edit_worker(change: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda resource: change(
        cluster_spec(resource)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    )


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (edit(lambda s: s.update(autoscalerOption=s.pop("autoscalerOptions"))), "autoscalerOption"),
        (edit(lambda s: s["authOptions"].update(mode="tokens")), "tokens"),
        (edit(lambda s: s.pop("authOptions")), "no token"),
        (edit(lambda s: s["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0})), "num-cpus"),
        (
            edit(lambda s: s["headGroupSpec"]["rayStartParams"].update({"dashboard-host": "0.0.0.0"})),
            "every interface",
        ),
        (edit(lambda s: s["headGroupSpec"].update(serviceType="LoadBalancer")), "reachable from outside"),
        (edit(lambda s: s["workerGroupSpecs"][0].update(minReplicas=1)), "start from none"),
        (edit_worker(lambda c: c.update(resource={})), "resource"),
        (edit_worker(lambda c: c["resources"]["limits"].update({"nvidia.com/gpus": "4"})), "gpus"),
        (edit(lambda s: s.update(rayVersion="2.59.0")), "another Ray"),
        (
            edit_worker(lambda c: c.update(env=[e for e in c["env"] if e["name"] != "HF_TOKEN"])),
            "hub's token",
        ),
        (
            edit_worker(
                lambda c: c.update(
                    env=[
                        e if e["name"] != "HF_TOKEN" else {"name": "HF_TOKEN", "value": "hf_abc"}
                        for e in c["env"]
                    ]
                )
            ),
            "hub's token",
        ),
    ],
)
def test_damaged_resource_is_found(kind: str, damage: Callable[[dict], object], finding: str):
    resource = load(kind)
    damage(resource)
    assert any(finding in p for p in problems(resource)), problems(resource)


@pytest.mark.parametrize("kind", PARTS)
def test_rays_autoscaler_sees_gpu_workers_from_none(kind: str):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = load(kind)
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": resource["metadata"], "spec": cluster_spec(resource)}
    )

    head, gpu = config["available_node_types"]["headgroup"], config["available_node_types"]["gpu"]
    assert head["resources"]["CPU"] == 0
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 8)
    assert gpu["resources"] == {"CPU": 40, "GPU": 4, "memory": 160 * 2**30}
    assert config["idle_timeout_minutes"] == 5


def test_job_and_cluster_have_the_same_nodes():
    job, cluster = (copy.deepcopy(cluster_spec(load(kind))) for kind in ("RayJob", "RayCluster"))
    del cluster["gcsFaultToleranceOptions"], cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"]
    assert job == cluster


def test_job_runs_words_that_the_sweep_understands():
    from deltasae_ray.cli import parse
    from deltasae_ray.study.config import SHORTHAND, StudyConfig
    from deltasae_ray.study.launched import with_launcher

    job = load("RayJob")
    program, script, config, *words = shlex.split(job["spec"]["entrypoint"])
    config = config.replace("config=", f"config={ROOT}/")
    study = parse(StudyConfig, [config, *words], shorthand=SHORTHAND, description="")
    head = cluster_spec(job)["headGroupSpec"]["template"]["spec"]["containers"][0]
    environment = {e["name"]: e.get("value", "") for e in head["env"]} | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    placed = with_launcher(study, environment)

    assert (program, script) == ("python", "jobs/sweep.py")
    assert placed.storage.root == "gs://my-bucket/deltasae/runs/paper-gemma2-9b"
    assert placed.tracking.uri == "https://mlflow:5000"
    node = cluster_spec(job)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ]
    assert study.gangs.gpus_per_gang <= int(node["nvidia.com/gpu"])
    assert study.gangs.gpus_per_rank  # a sharded model is trained on the GPUs as well
