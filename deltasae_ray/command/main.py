"""`deltasae COMMAND key=value …`: one command for every job, and two that help before the first."""

import importlib
import sys
from collections.abc import Callable, Sequence

from deltasae_ray.study.main import JOBS
from deltasae_ray.study.main import main as run_job

HELPERS = {
    "doctor": "Say what this machine has and lacks for a study, each with its remedy.",
    "init": "Write a commented study.yaml for a model and adapters, after looking at both.",
}
"""Command that is no job → what it does. Its module has its name."""


def main(words: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 where there is none of this name."""
    words = sys.argv[1:] if words is None else words
    name, rest = (words[0], words[1:]) if words else ("--help", ())
    if name in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return
    if name in JOBS:
        run_job(name, rest)
    elif name in HELPERS:
        helper: Callable[[Sequence[str]], int] = importlib.import_module(f"deltasae_ray.command.{name}").main
        raise SystemExit(helper(rest))
    else:
        sys.stderr.write(f"error: deltasae has no command {name!r}\n{usage()}")
        raise SystemExit(2)


def usage() -> str:
    """All commands, one to a line."""
    lines = "\n".join(f"  {name:<9}{told}" for name, told in (JOBS | HELPERS).items())
    return (
        "usage: deltasae COMMAND [config=NAME|FILE.yaml] [key=value …]\n\n"
        f"{lines}\n\n`deltasae COMMAND --help` lists the words that a command takes.\n"
    )
