"""A Ray of its own for a test: in new namespaces its processes end with it, its ports are not this machine's,
and no other Ray on the machine is seen or touched."""

import shlex
import subprocess
import sys
from pathlib import Path

NAMESPACES = ("unshare", "--pid", "--fork", "--net", "--mount", "--mount-proc", "--kill-child")
RAY = str(Path(sys.executable).parent / "ray")


def isolated() -> bool:
    """Whether namespaces can be made here."""
    try:
        return (
            subprocess.run(
                [*NAMESPACES, "ip", "link", "set", "lo", "up"], capture_output=True, timeout=20
            ).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def run_isolated(*commands: list[str], env: dict[str, str], timeout: float) -> str:
    """Runs commands one after the other, with a loopback device and nothing else, and returns what the last
    one printed.

    Raises:
        AssertionError: one of them failed or took too long; with the end of what it said.
    """
    *first, last = (shlex.join(c) for c in commands)
    exports = [f"export {key}={shlex.quote(value)}" for key, value in env.items()]
    script = ["set -e", "ip link set lo up", *exports, *(f"{c} >&2" for c in first), last]
    process = subprocess.Popen(
        [*NAMESPACES, "bash", "-c", "\n".join(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()  # and with it everything inside
        printed, said = process.communicate()
    assert process.returncode == 0, f"exit code {process.returncode}: {said[-3000:]}"
    return printed
