"""cluster/kuberay/*.yaml: a closed schema of KubeRay's API (crd/kuberay.schema.yaml), Ray's own autoscaler,
and this package's command line read them. That an operator starts the pods is not tested here."""

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((Path(__file__).parent / "crd/kuberay.schema.yaml").read_text())
FILES = {"RayCluster": "raycluster.yaml", "RayJob": "rayjob.yaml"}


def load(kind: str) -> dict:
    return yaml.safe_load((ROOT / "cluster/kuberay" / FILES[kind]).read_text())


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
        check(resource["spec"].get("shutdownAfterJobFinishes") is True, "the cluster outlives its job")
        check(resource["spec"].get("submissionMode") == "SidecarMode", "another pod needs the dashboard")
    return found


@pytest.mark.parametrize("kind", FILES)
def test_resource_is_sound(kind: str):
    assert problems(load(kind)) == []


def edit(change: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda resource: change(cluster_spec(resource))


def edit_worker(change: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda resource: change(
        cluster_spec(resource)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    )


@pytest.mark.parametrize("kind", FILES)
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


@pytest.mark.parametrize("kind", FILES)
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

    program, job, *words = shlex.split(load("RayJob")["spec"]["entrypoint"])
    study = parse(StudyConfig, words, shorthand=SHORTHAND, description="")

    assert (program, job) == ("python", "jobs/sweep.py")
    assert study.storage.root.startswith("s3://")
    assert study.tracking.uri.startswith("http://mlflow:")
    node = cluster_spec(load("RayJob"))["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "resources"
    ]["limits"]
    assert study.gangs.gpus_per_gang <= int(node["nvidia.com/gpu"])
    assert study.gangs.gpus_per_rank  # a sharded model is trained on the GPUs as well
    assert study.corpus.fit_tokens > 4 * max(
        study.fit.sizes
    )  # a half of it is what the reference is fitted on


def test_one_image_runs_everywhere():
    specs = [cluster_spec(load(kind)) for kind in FILES]
    groups = [group for spec in specs for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    images |= {
        yaml.safe_load((ROOT / f"cluster/{variant}.yaml").read_text())["docker"]["image"]
        for variant in ("aws", "gcp")
    }
    assert len(images) == 1
