"""What kustomize makes of cluster/kuberay, kept so that it is read where no kustomize is.

python -m tests.cluster.rendered      # makes it anew, after a change
"""

import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
CLOUDS, PARTS = ("gke", "eks"), ("platform", "cluster", "job")


def file(cloud: str, part: str) -> Path:
    return Path(__file__).parent / f"{cloud}-{part}.yaml"


def documents(cloud: str, part: str) -> list[dict]:
    return list(yaml.safe_load_all(file(cloud, part).read_text()))


def kustomize() -> list[str] | None:
    """The command that renders a folder; None where there is none."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else None


def render(cloud: str, part: str) -> str:
    command = kustomize()
    assert command, "install kubectl or kustomize"
    folder = str(ROOT / "cluster/kuberay" / cloud / part)
    return subprocess.run([*command, folder], check=True, capture_output=True, text=True).stdout
