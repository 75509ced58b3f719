"""The evidence folder: what another party needs to check a decision, with a manifest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from deltasae_ray.fingerprints import file_sha256
from deltasae_ray.gate.decision import Decision
from deltasae_ray.gate.finished import CLAIMS, TABLES, Finished
from deltasae_ray.gate.junit import junit
from deltasae_ray.gate.manifest import MANIFEST, manifest_bytes
from deltasae_ray.gate.model_card import model_card
from deltasae_ray.gate.sarif import sarif
from deltasae_ray.storage import Storage

FOLDER = "gate"
"""Below the storage root; the last gate's."""
RESULT, SARIF, JUNIT = "gate.json", "gate.sarif", "gate.xml"
_COPIED = (
    *TABLES,
    CLAIMS,
    "divergence.parquet",
    "monitors.parquet",
    "audit.parquet",
    "audit.json",
    "report.html",
    "report.json",
)
"""Files of the study that are copied where they are there."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def result_files(decision: Decision, policy_text: str) -> dict[str, bytes]:
    """The decision in each of its forms, with the policy."""
    return {
        RESULT: _json(decision.to_dict()),
        SARIF: _json(sarif(decision)),
        JUNIT: junit(decision),
        "policy.yaml": policy_text.encode(),
    }


def write_evidence(
    folder: Path, decision: Decision, finished: Finished, storage: Storage, results: Mapping[str, bytes]
) -> None:
    """Fills an empty local folder; the manifest is written last."""
    report = finished.report
    files = dict(results)
    files |= {name: storage.read_bytes(name) for name in _COPIED if storage.exists(name)}
    files["config.yaml"] = report.config.encode()
    files["subject.json"] = _json(subject(decision, finished, storage))
    for adapter in decision.adapters:
        files[f"model-cards/{quote(adapter, safe='')}.md"] = model_card(adapter, decision, finished).encode()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    written = {name: file_sha256(folder / name) for name in files}
    (folder / MANIFEST).write_bytes(manifest_bytes(written))


def subject(decision: Decision, finished: Finished, storage: Storage) -> dict:
    """What was judged, on what: digests of adapters, base and text, and versions."""
    report, trained = finished.report, _trained(storage)
    digests = {name: report.digests.get(f"adapter {name}", "") for name in report.studied}
    adapters = {
        name: {
            "digest": content,
            "judged": name in decision.adapters,
            "sha256": _hashes(storage, trained.get(content, f"adapters/{content}")) if content else {},
        }
        for name, content in digests.items()
    }
    return {
        "created": report.created,
        "base": {"name": report.model, "digest": report.digests.get("model", "")},
        "adapters": adapters,
        "text": {
            "digest": report.digests.get("corpus", ""),
            "texts": [{"name": c.name, "tokens": c.tokens, "documents": c.documents} for c in report.corpora],
        },
        "harvest": report.digests.get("harvest", ""),
        "layers": list(report.layers),
        "reference": report.reference,
        "versions": report.versions,
    }


def _trained(storage: Storage) -> dict[str, str]:
    """Digest → folder of adapters that were trained here, which lie under their recipe; given ones lie under
    their digest."""
    keys = storage.list("adapters", suffix=f"/{MANIFEST}")
    return {str(storage.read_json(key).get("digest")): key.removesuffix(f"/{MANIFEST}") for key in keys}


def _hashes(storage: Storage, folder: str) -> dict[str, str]:
    """File of an adapter → sha256, as it is kept below the root; empty where it is not there."""
    keys = {name: f"{folder}/{name}" for name in _ADAPTER_FILES}
    return {
        name: hashlib.sha256(storage.read_bytes(key)).hexdigest()
        for name, key in keys.items()
        if storage.exists(key)
    }


def _json(value: dict) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()
