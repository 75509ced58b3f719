"""Signatures of evidence folders, by the library `model-signing` (Sigstore bundles, OpenSSF Model Signing
1.0)."""

import importlib
from pathlib import Path
from typing import Any

from deltasae_ray.errors import ConfigError
from deltasae_ray.gate.manifest import SIGNATURE


def _library(part: str) -> Any:
    """A module of model-signing.

    Raises:
        ConfigError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as e:
        raise ConfigError(
            f"signatures need the extra [sign] (pip install 'deltasae-ray[sign]'), or leave sign_key and"
            f" public_key out: {e}"
        ) from e


def check_can_sign(key: str) -> None:
    """Whether a folder could be signed with this key, before anything is written.

    Raises:
        ConfigError: the library is missing, or there is no such file.
    """
    _library("signing")
    if not Path(key).is_file():
        raise ConfigError(f"sign_key={key}: there is no such file; give a private key in PEM (EC, P-256)")


def sign(folder: Path, key: str) -> None:
    """Writes the signature of a finished folder into it.

    Args:
        key: file of a private key in PEM, on an elliptic curve.

    Raises:
        ConfigError: the key cannot be read.
    """
    signing, signature = _library("signing"), folder / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=Path(key))
        config.set_hashing_config(_hashing(signature)).sign(folder, signature)
    except (ValueError, TypeError, OSError) as e:
        raise ConfigError(f"sign_key={key} cannot sign ({e}): give a private key in PEM (EC, P-256)") from e


def signature_fault(folder: Path, key: str) -> str:
    """What is wrong with a folder's signature; empty where it holds.

    Args:
        key: file of the public key in PEM.

    Raises:
        ConfigError: the library is missing, or the key cannot be read.
    """
    verifying, signature = _library("verifying"), folder / SIGNATURE
    if not Path(key).is_file():
        raise ConfigError(f"public_key={key}: there is no such file; give the signer's public key in PEM")
    if not signature.is_file():
        return f"{SIGNATURE}: it is missing, and public_key asks for it"
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=Path(key))
        config.set_hashing_config(_hashing(signature)).verify(folder, signature)
    except Exception as e:  # noqa: BLE001 - the library and those below it raise a dozen types
        return f"{SIGNATURE}: it does not hold with this key ({e})"
    return ""


def _hashing(signature: Path) -> Any:
    return _library("hashing").Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
