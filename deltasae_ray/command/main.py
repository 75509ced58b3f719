"""`deltasae COMMAND key=value …`: one command for every job, and two that help before the first."""

import sys
from collections.abc import Sequence

from deltasae_ray.study.config import SHIPPED
from deltasae_ray.study.main import JOBS
from deltasae_ray.study.main import main as run_job

HELPERS = {
    "arena": "Score what says what an adapter learnt, on adapters of known truth that are trained for it.",
    "gate": "Judge the adapters of a finished study by a policy, or verify a folder of evidence.",
    "doctor": "Say what this machine has and lacks for a study, each with its remedy.",
    "screen": "Read adapters from their weights alone, among reference adapters, without running a model.",
    "init": "Write a commented study.yaml for a model and adapters, after looking at both.",
}
"""Command that is no stage of a study → what it does."""


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
        raise SystemExit(_help(name, rest))
    else:
        sys.stderr.write(f"error: deltasae has no command {name!r}\n{usage()}")
        raise SystemExit(2)


def _help(name: str, words: Sequence[str]) -> int:
    """Runs a command that is no stage; each is loaded only when it is asked for."""
    if name == "doctor":
        from deltasae_ray.command import doctor

        return doctor.main(words)
    if name == "init":
        from deltasae_ray.command import init

        return init.main(words)
    if name == "screen":
        from deltasae_ray.command import screen

        return screen.main(words)
    if name == "arena":
        from deltasae_ray.arena.main import main as run_arena

        run_arena(words, without_words=[f"config={SHIPPED / 'arena.yaml'}"])
        return 0
    from deltasae_ray.gate.run import main as judge

    judge(HELPERS[name], words)
    return 0


def usage() -> str:
    """All commands, one to a line."""
    every = JOBS | HELPERS
    width = max(map(len, every)) + 2
    lines = "\n".join(f"  {name:<{width}}{what}" for name, what in every.items())
    return (
        "usage: deltasae COMMAND [config=NAME|FILE.yaml] [key=value …]\n\n"
        f"{lines}\n\n`deltasae COMMAND --help` lists the words that a command takes.\n"
    )
