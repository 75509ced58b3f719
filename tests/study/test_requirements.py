"""Every shipped study against every shipped cluster; and what a stage is said to need against what it
takes."""

import pickle
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.adapt.lora import dropout_modules, new_lora
from deltasae_ray.cli import parse
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.errors import ResourceError
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import backbone, empty_model, load_model
from deltasae_ray.models.size import ModelSize, model_size
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gpus import gpu_name
from deltasae_ray.runtime.node_types import NodeType, _types, of_ray
from deltasae_ray.study import plan_costs
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.remedies import check_fits
from deltasae_ray.study.requirements import Needs, fits, obstacle, requirements
from tests.tiny import ARCHITECTURES, FAMILIES, TARGETS, config, save_model

ROOT = Path(__file__).parents[2]
KUBERAY = {
    f"cluster/kuberay/{cloud}/{part}": f"tests/cluster/rendered/{cloud}-{part}.yaml"
    for part in ("cluster", "job")
    for cloud in ("gke", "eks")
}
"""Folder that kustomize renders → what it renders."""
JOB = "cluster/kuberay/gke/job"
CLUSTERS = ("cluster/aws.yaml", "cluster/gcp.yaml", *KUBERAY)
FITS = ""
ON_L4 = (
    r"adapt stage can never be placed.*L4 of 24\.2 GB.*fewer than 42\.9 GB.*Set adapt\.batch_contexts=4"
    r" model\.offload=cpu, or take .*1 GPU of 43 GB or more"
)
OUTCOMES = {
    ("demo", c): FITS for c in CLUSTERS
} | {
    ("demo-gemmascope", c): FITS for c in CLUSTERS
} | {
    ("paper-gemma3-270m", c): FITS for c in CLUSTERS
} | {
    ("rayjob", c): FITS for c in CLUSTERS
} | {
    ("paper-gemma2-9b", "cluster/aws.yaml"): FITS,
    ("paper-gemma2-9b", "cluster/gcp.yaml"): ON_L4,
} | {
    ("paper-gemma2-9b", c): ON_L4 for c in KUBERAY
}  # fmt: skip
"""(study, cluster) → what the refusal says; empty where it fits. `rayjob` is the study in the RayJob's own
entrypoint."""


def file(cluster: str) -> Path:
    return ROOT / KUBERAY.get(cluster, cluster)


def read_node_types(path: Path) -> tuple[NodeType, ...]:
    head, workers = _types(yaml.safe_load(path.read_text()))
    return head, *workers


def study(name: str) -> StudyConfig:
    if name == "rayjob":
        words = shlex.split(yaml.safe_load(file(JOB).read_text())["spec"]["entrypoint"])[2:]
        words = [word.replace("config=", f"config={ROOT}/") for word in words]
    else:
        words = [f"config={ROOT}/jobs/configs/{name}.yaml"]
    return parse(StudyConfig, words, shorthand=SHORTHAND, description="")


@cache
def size_of(base: str) -> ModelSize:
    """The models of the shipped studies by their published shapes; no weights."""
    from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig

    shapes: dict[str, Any] = {
        "gemma-2-9b": Gemma2Config(
            vocab_size=256_000,
            hidden_size=3584,
            intermediate_size=14_336,
            num_hidden_layers=42,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
        ),
        "gemma-3-270m": Gemma3TextConfig(
            vocab_size=262_144,
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
        ),
    }
    name = base.rpartition("/")[2].replace("builtin:gemma3", "gemma-3")
    with torch.device("meta"):
        return model_size(AutoModelForCausalLM.from_config(shapes[name]))


def test_the_table_names_every_shipped_study_and_cluster() -> None:
    studies = {p.stem for p in (ROOT / "jobs/configs").glob("*.yaml") if p.stem != "arena"} | {"rayjob"}
    clusters = {str(p.relative_to(ROOT)) for p in (ROOT / "cluster").glob("*.yaml")}
    clusters |= {
        str(p.parent.relative_to(ROOT))
        for part in ("cluster", "job")
        for p in (ROOT / "cluster/kuberay").glob(f"*/{part}/kustomization.yaml")
        if p.parts[-3] != "base"
    }
    assert set(OUTCOMES) == {(s, c) for s in studies for c in clusters}
    for name in studies:
        assert FITS in [told for (s, _), told in OUTCOMES.items() if s == name], (
            f"{name} fits no cluster that is shipped"
        )


@pytest.mark.parametrize(("name", "cluster"), OUTCOMES)
def test_a_shipped_study_fits_a_shipped_cluster_or_is_refused_with_the_remedy(
    name: str, cluster: str
) -> None:
    cfg, kinds, told = study(name), read_node_types(file(cluster)), OUTCOMES[name, cluster]
    size = size_of(cfg.model.base)
    if told == FITS:
        check_fits(cfg, size, kinds)
        return
    with pytest.raises(ResourceError, match=told) as refused:
        check_fits(cfg, size, kinds)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_the_remedy_that_is_told_does() -> None:
    cfg, kinds = study("paper-gemma2-9b"), read_node_types(ROOT / "cluster/gcp.yaml")
    words = [
        f"config={ROOT}/jobs/configs/paper-gemma2-9b.yaml",
        "adapt.batch_contexts=4",
        "model.offload=cpu",
    ]
    check_fits(parse(StudyConfig, words, shorthand=SHORTHAND, description=""), size_of(cfg.model.base), kinds)


def test_the_adapters_of_a_9b_model_on_cpus_are_refused_on_machines_too_small_for_it() -> None:
    """Nothing shared, and no GPU asked for."""
    cfg = study("paper-gemma2-9b")
    before = replace(
        cfg,
        model=replace(cfg.model, sharding="none"),
        gangs=GangConfig(),
        fit=replace(cfg.fit, gpus_per_worker=0.0),
    )
    assert [plan_costs.devices(before, stage) for stage in ("adapt", "harvest", "fit")] == [0, 0, 0]
    half = replace(before, gangs=GangConfig(gpus_per_gang=1))
    assert [plan_costs.devices(half, stage) for stage in ("adapt", "harvest", "fit")] == [1, 1, 0], (
        "adapters are trained where gangs have GPUs"
    )
    assert plan_costs.speed(half, "fit") < plan_costs.speed(
        half, "harvest"
    ) and "ALTHOUGH" in plan_costs.devices_line(half, "fit")
    assert (plan_costs.devices(cfg, "adapt"), plan_costs.devices_line(cfg, "adapt")) == (4, "4 GPUs")
    with pytest.raises(ResourceError, match="adapt stage.*no GPU.*Set "):
        check_fits(before, size_of(cfg.model.base), read_node_types(ROOT / "cluster/gcp.yaml"))
    gang = next(n for n in requirements(before, size_of(cfg.model.base)) if n.stage == "harvest")
    assert gang.host_bytes > 36e9 and not gang.device_bytes
    on_gpu = next(n for n in requirements(half, size_of(cfg.model.base)) if n.stage == "harvest")
    assert on_gpu.device_bytes > 36e9 and all(
        obstacle(on_gpu, kind) for kind in read_node_types(ROOT / "cluster/gcp.yaml")
    )


NINE = ModelSize(
    9_000_000_000,
    900_000_000,
    50_000_000,
    42,
    3584,
    16,
    256_000,
    44_032,
    {"q_proj": 3584},
    {"q_proj": 322_560},
)


def needs(stage: str, **fields: Any) -> Needs:
    cfg = StudyConfig(
        model=fields.pop("model", ModelConfig()),
        gangs=fields.pop("gangs", GangConfig()),
        adapt=AdaptConfig(targets=("q_proj",), **fields),
    )
    return next(n for n in requirements(cfg, NINE) if n.stage == stage)


def test_weights_are_counted_as_they_are_held() -> None:
    def weights(offload: Any = "none", ranks: int = 4, **model: Any) -> tuple[float, float]:
        cfg = ModelConfig(sharding="zero3" if ranks > 1 else "none", offload=offload, **model)
        found = needs("harvest", model=cfg, gangs=GangConfig(ranks=ranks, gpus_per_gang=ranks))
        return dict(found.parts)["weights"] / 1e9, found.host_bytes / 1e9

    assert weights(ranks=1) == (36.0, 38.0), "whole on the GPU, and in the machine's memory while it loads"
    assert weights(ranks=1, weights="bf16")[0] == pytest.approx(18 + 3.6), (
        "one module is cast at a time, the head the largest"
    )
    assert weights()[0] == pytest.approx(9 + 3.6), "a quarter, and one module whole"
    assert weights("cpu")[0] == pytest.approx(3.6) and weights("cpu")[1] == pytest.approx(36 + 4 * 3.6 + 8)


def test_what_autograd_saves_is_what_training_is_said_to_need(tmp_path: Path) -> None:
    """Of a Gemma 2, whose attention is softcapped and so not fused, and of a Llama, whose scores are never
    held though they are counted."""
    for architecture, most in (("gemma2", 2.5), ("llama", 4.0)):
        folder = save_model(tmp_path / architecture, architecture)
        targets, contexts, length = ("q_proj", "k_proj", "v_proj", "o_proj"), 4, 64
        model = new_lora(load_model(folder), rank=4, alpha=8, dropout=0.05, targets=targets, seed=0)
        for module in dropout_modules(model):
            module.train()
        parameters, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

        def keep(
            tensor: torch.Tensor, saved: dict[int, int] = saved, own: set[int] = parameters
        ) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = backbone(model)(
                input_ids=torch.ones(contexts, length, dtype=torch.int64), use_cache=False
            ).last_hidden_state
        assert out.requires_grad
        cfg = StudyConfig(
            adapt=AdaptConfig(ranks=(4,), batch_contexts=contexts, targets=targets),
            corpus=CorpusConfig(context_len=length),
        )
        told = dict(requirements(cfg, model_size(empty_model(folder)))[0].parts)["activations"]
        assert told / most < sum(saved.values()) <= told, architecture


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *FAMILIES])
def test_every_architecture_has_a_size(architecture: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(architecture))
    size = model_size(model)
    assert (size.layers, size.d_model, size.vocabulary, size.heads) == (4, 32, 320, 4)
    assert (
        size.parameters
        == sum(p.numel() for p in model.parameters())
        > size.largest
        >= size.largest_in_block
        > 0
    )
    name = TARGETS[architecture][0]
    assert size.lora(2, (name,)) == 2 * size.per_rank[name] > 0 and size.inputs[name] >= 32


def test_an_actor_stands_where_all_it_asks_for_is() -> None:
    asked = Needs("fit", "fit worker", 1, 2, 1, 20e9, 30e9, 0.0, ())
    one = NodeType("a", 4, 1, 64e9, 24e9)
    assert obstacle(asked, one) == ""
    for change, why in (
        ({"cpus": 1}, "CPUs are fewer"), ({"gpus": 0}, "GPUs are fewer"), ({"memory": 29e9}, "its memory"),
        ({"gpu_bytes": 16e9}, "its GPUs hold 16.0 GB"),
    ):  # fmt: skip
        assert why in obstacle(asked, replace(one, **change)), why
    assert not obstacle(asked, replace(one, gpu_bytes=None)), "unknown memory is not held against it"
    assert obstacle(replace(asked, gpus=0.5), one), "half of a GPU holds half"
    assert fits([asked], [replace(one, cpus=1), one]) and not fits([asked], [])


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("nvidia-tesla-t4", "t4"), ("nvidia-tesla-a100", "a100"), ("nvidia-a100-80gb", "a100-80gb"),
        ("nvidia-h100-80gb", "h100"), ("L40S", "l40s"),
        ("NVIDIA-A100-SXM4-80GB", "a100-80gb"), ("A100-40G", "a100"), ("NVIDIA-L4", "l4"),
        ("nvidia-h200-141gb", "h200"), ("warp9", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_the_names_that_clouds_ray_and_kubernetes_give_it(word: str, name: str) -> None:
    assert gpu_name(word) == name


def test_node_types_are_read_from_every_cluster_file_and_from_ray() -> None:
    found = {c: read_node_types(file(c)) for c in CLUSTERS}
    assert [[(k.name, k.cpus, k.gpus, k.gpu, k.at_most) for k in kinds] for kinds in found.values()] == [
        [("head", 0, 0, "", 1), ("gpu", 48, 4, "l40s", 8)],
        [("head", 0, 0, "", 1), ("gpu", 48, 4, "l4", 8)],
        [("head", 0, 0, "", 1), ("gpu", 40, 4, "l4", 8)],
        [("head", 0, 0, "", 1), ("gpu", 40, 4, "l4", 8)],
        [("head", 0, 0, "", 1), ("gpu", 40, 4, "l4", 8)],
        [("head", 0, 0, "", 1), ("gpu", 40, 4, "l4", 8)],
    ]
    assert of_ray("n", {"CPU": 8, "GPU": 1, "memory": 1e9, "accelerator_type:L4": 1}).gpu == "l4"
