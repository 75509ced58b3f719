"""infra/Dockerfile, read instruction by instruction. No image is built here: that needs a Docker engine."""

import fnmatch
import re
import tomllib
from contextlib import suppress
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
COPIED = (
    "requirements.lock",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "deltasae_ray/cli.py",
    "jobs/sweep.py",
    "jobs/configs/demo.yaml",
)
LEFT_OUT = (
    ".venv/bin/python",
    ".git/config",
    "runs/demo/report.html",
    "infra/mlflow/.env",
    "tests/conftest.py",
    "jobs/__pycache__/a.pyc",
)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) with continued lines joined and comments left out."""
    lines = [
        line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines())
    ]


def last_stage(path: Path) -> list[tuple[str, str]]:
    steps = instructions(path)
    return steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :]


def values(steps: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for instruction, rest in steps if instruction == word]


def test_jobs_lie_in_the_folder_where_commands_run():
    stage = last_stage(ROOT / "infra/Dockerfile")
    assert values(stage, "WORKDIR")[-1] == "/app"
    copies = [i for i, step in enumerate(stage) if step == ("COPY", "jobs ./jobs")]
    assert copies and copies[0] > stage.index(("WORKDIR", "/app"))


def test_environment_is_on_the_path_of_every_kind_of_shell():
    stage = last_stage(ROOT / "infra/Dockerfile")
    assert any("PATH=/opt/deltasae/bin:$PATH" in env for env in values(stage, "ENV"))
    # Ray's launcher uses login shells, in which Debian's /etc/profile sets PATH anew and then reads this
    # folder.
    assert any(
        'export PATH="/opt/deltasae/bin:$PATH"' in run and "/etc/profile.d/" in run
        for run in values(stage, "RUN")
    )
    assert "/opt/deltasae /opt/deltasae" in values(stage, "COPY")[0]


def test_containers_do_not_run_as_root():
    for path in ("infra/Dockerfile", "infra/mlflow/Dockerfile"):
        stage = last_stage(ROOT / path)
        user = values(stage, "USER")[-1]
        assert user not in ("root", "0")
        assert any(re.search(rf"useradd --uid 1000 .*\b{user}\b", run) for run in values(stage, "RUN"))


def test_nothing_stands_between_ray_and_the_command_it_runs():
    stage = last_stage(ROOT / "infra/Dockerfile")
    assert values(stage, "ENTRYPOINT") == []
    # `ray up` reads HOME from the image, and copies with rsync over ssh.
    assert any("HOME=/home/ray" in env for env in values(stage, "ENV"))
    assert any("openssh-client rsync" in run for run in values(stage, "RUN"))


def test_every_version_comes_from_the_lock():
    steps = instructions(ROOT / "infra/Dockerfile")
    # Without its first line, which makes the lock installable: pip and setuptools.
    installs = [
        part
        for run in values(steps, "RUN")
        for part in run.split("&&")
        if "pip install" in part and '"pip>=' not in part
    ]
    assert len(installs) == 5
    assert all(
        "requirements.lock" in part or "-r rest.txt" in part or part.endswith(" .") for part in installs
    )
    everything = " ".join(values(steps, "RUN"))
    assert all(
        word in everything
        for word in ("grep '^torch=='", "grep '^deepspeed=='", "grep -vE '^(torch|deepspeed)=='")
    )
    assert ("ARG", 'TORCH_INDEX_URL=""') in steps
    assert values(steps, "FROM")[0].startswith("python:") and ("ARG", "PYTHON=3.11-slim-bookworm") in steps


def test_lock_pins_what_the_image_asks_it_for():
    pins = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    assert {"torch", "deepspeed", "ray", "mlflow", "boto3"} <= set(pins)
    assert "+" not in pins["torch"]


def test_mlflow_server_has_the_version_of_the_client():
    import mlflow

    assert (
        f'"mlflow=={mlflow.__version__}"' in values(instructions(ROOT / "infra/mlflow/Dockerfile"), "RUN")[0]
    )
    chart = yaml.safe_load((ROOT / "infra/mlflow/values.yaml").read_text())
    assert chart["image"]["tag"] == mlflow.__version__


def test_the_image_holds_what_runs_and_not_what_only_tests_need():
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # boto3: `ray up` on AWS, and what its own libraries need
    todo = [*project["dependencies"], *extras["demo"], *extras["saelens"], *extras["search"], "boto3"]
    needed: dict[str, set[str]] = {}
    while todo:
        asked = Requirement(todo.pop())
        name = canonicalize_name(asked.name)
        if name in needed and asked.extras <= needed[name]:
            continue
        needed.setdefault(name, set()).update(asked.extras)
        with suppress(PackageNotFoundError):  # it is asked for on another system
            todo += [
                text
                for text in requires(name) or ()
                if (marker := Requirement(text).marker) is None
                or any(marker.evaluate({"extra": extra}) for extra in ("", *needed[name]))
            ]
    runtime, dev = (
        {canonicalize_name(line.split("==")[0]) for line in (ROOT / lock).read_text().splitlines()}
        for lock in ("requirements.lock", "requirements-dev.lock")
    )
    assert not runtime & dev and {"pytest", "moto", "ruff"} <= dev
    assert runtime - set(needed) == set(), "move these to requirements-dev.lock"
    assert dev & set(needed) == set(), "move these to requirements.lock"
    assert "requirements-dev.lock" not in (ROOT / ".dockerignore").read_text()


def is_ignored(path: str) -> bool:
    """The part of .dockerignore's rules that ours uses: the last matching line decides, `!` takes back."""
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        anywhere = "**/" in line
        names = path.split("/") if anywhere else parents
        if line and not line.startswith("#") and any(fnmatch.fnmatch(name, pattern) for name in names):
            ignored = not line.startswith("!")
    return ignored


def test_only_what_the_image_needs_is_sent_to_the_builder():
    assert [p for p in COPIED if is_ignored(p)] == []
    assert [p for p in LEFT_OUT if not is_ignored(p)] == []
