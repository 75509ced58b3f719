"""The gate from words to exit code. It runs without Ray, over the files of a finished study."""

import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltasae_ray.cli import parse, say
from deltasae_ray.credentials import bare_root
from deltasae_ray.errors import ConfigError, DeltaSaeError
from deltasae_ray.gate.decision import CLEAR, FIRED, WRONG, decide
from deltasae_ray.gate.evidence import FOLDER, JUNIT, RESULT, SARIF, result_files, write_evidence
from deltasae_ray.gate.finished import read_finished
from deltasae_ray.gate.manifest import SIGNATURE, first_difference
from deltasae_ray.gate.policy import parse_policy
from deltasae_ray.gate.printed import printed
from deltasae_ray.gate.signing import check_can_sign, sign, signature_fault
from deltasae_ray.paths import expanded
from deltasae_ray.redaction import redacted_output
from deltasae_ray.storage import Storage


@dataclass(frozen=True)
class RootConfig:
    """Where the study lies."""

    root: str = "runs/demo"
    """Folder, s3:// or gs:// of a finished study."""


@dataclass(frozen=True)
class GateConfig:
    """May the adapters of a study be released?"""

    policy: str = ""
    """YAML file with the rules; docs/gate.md explains it."""
    storage: RootConfig = field(default_factory=RootConfig)
    sign_key: str = ""
    """File of a private key (PEM, EC P-256) that signs the evidence folder; needs the extra [sign]."""
    verify: str = ""
    """Evidence folder to check instead: it names the first file that differs."""
    public_key: str = ""
    """File of the signer's public key (PEM); with verify, the signature is checked too."""

    def __post_init__(self) -> None:
        if bool(self.policy) == bool(self.verify):
            raise ConfigError("give either policy=FILE.yaml with storage.root=…, or verify=FOLDER")
        if self.public_key and not self.verify or self.sign_key and not self.policy:
            raise ConfigError("sign_key goes with policy=FILE.yaml, and public_key with verify=FOLDER")


FIRST = {
    "policy": "YAML file with the rules",
    "storage.root": "folder, s3:// or gs:// of a finished study",
    "verify": "evidence folder to check instead",
}


def main(description: str | None, words: Sequence[str] | None = None) -> None:
    """Judges, or verifies, and ends the process: 0 no rule fired, 1 a rule fired (or a file differs), 2 the
    command is wrong, 3 undecided.

    Args:
        words: `key=value` words; those of the command line where none are given.
    """
    with redacted_output():
        try:
            given = sys.argv[1:] if words is None else words
            cfg = parse(GateConfig, given, shorthand={}, description=description or "", first=FIRST)
            code = verify(cfg) if cfg.verify else judge(cfg)
        except DeltaSaeError as e:
            sys.stderr.write(f"\n{type(e).__name__}: {e}\n")
            code = WRONG
        except Exception:  # noqa: BLE001 - a bug must not look like a rule that fired
            sys.stderr.write(traceback.format_exc())
            code = WRONG
    raise SystemExit(code)


def judge(cfg: GateConfig) -> int:
    """Applies the policy, prints the table, writes results and evidence below the root.

    Raises:
        DeltaSaeError: the policy, the root or the key is wrong; nothing was written then.
    """
    path = Path(expanded(cfg.policy, "policy"))
    text = read_policy(path)
    policy = parse_policy(text, f"policy={path}")
    if cfg.sign_key:
        check_can_sign(expanded(cfg.sign_key, "sign_key"))
    storage = Storage(bare_root(expanded(cfg.storage.root, "storage.root"), shared=False))
    finished = read_finished(storage)
    decision = decide(policy, finished, _shown_path(path))
    results = result_files(decision, text)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_evidence(folder, decision, finished, storage, results)
        if cfg.sign_key:
            sign(folder, expanded(cfg.sign_key, "sign_key"))
        storage.delete_folder(FOLDER)
        storage.put_folder(folder, FOLDER)
    say(printed(decision))
    say(
        f"\n{RESULT}, {SARIF}, {JUNIT}, model cards and the evidence:"
        f" {storage.address(FOLDER)}"
        f"\nCheck a copy of it with: python jobs/gate.py verify=FOLDER"
    )
    return decision.exit_code


def read_policy(path: Path) -> str:
    """The text of a policy's file.

    Raises:
        ConfigError: there is none, or it is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"policy={path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"policy={path} is not UTF-8 text: {e}") from e


def _shown_path(path: Path) -> str:
    """Relative to the working folder where the policy lies below it, as code scanning wants it; else its
    name."""
    full, here = path.absolute(), Path.cwd()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else path.name


def verify(cfg: GateConfig) -> int:
    """Checks a copy of an evidence folder against its manifest, and its signature where a key is given."""
    folder = Path(expanded(cfg.verify, "verify"))
    fault = first_difference(folder)
    if not fault and cfg.public_key:
        fault = signature_fault(folder, expanded(cfg.public_key, "public_key"))
    if fault:
        say(f"{folder} is not as it was written. {fault}")
        return FIRED
    signed = (folder / SIGNATURE).is_file()
    signature = "Its signature holds." if cfg.public_key else ""
    if not cfg.public_key:
        signature = (
            "It is signed; give public_key=FILE.pem to check by whom."
            if signed
            else "It is not signed: whoever changed a file could have changed the manifest too."
        )
    say(f"{folder} is as it was written. {signature}")
    return CLEAR
