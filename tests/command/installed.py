"""The package as a user has it: its wheel alone, in a virtual environment that sees the libraries of this one."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("deltasae_ray", "jobs", "pyproject.toml", "README.md", "LICENSE")


def installed(folder: Path) -> Path:
    """The command `deltasae` of a wheel that is built and installed below the folder."""
    source, environment = folder / "source", folder / "venv"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (path := REPOSITORY / name).is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source)]
    subprocess.run([*pip, *built], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--no-index", "--no-compile", str(wheel)],
        check=True,
    )
    libraries = next((environment / "lib").glob("python*")) / "site-packages" / "libraries.pth"
    libraries.write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "deltasae"
