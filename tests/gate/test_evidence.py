"""The evidence folder: complete, checkable by another party, and a changed byte anywhere is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.gate.manifest import MANIFEST, first_difference
from deltasae_ray.gate.run import GateConfig, RootConfig, judge, main, verify
from deltasae_ray.storage import Storage
from tests.gate.made import CALM, LOUD, SHARE, UNKNOWN, finished_study, policy_file

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose gate found r0 breaking a rule."""
    root = tmp_path_factory.mktemp("judged")
    finished_study(root, {"r0": {SHARE: LOUD}, "a/b": {SHARE: CALM}, "null": {SHARE: CALM}}, (1, 2))
    storage = Storage(str(root))
    storage.write_bytes(f"adapters/{0:016x}/adapter_config.json", b"{}")
    storage.write_bytes("adapters/recipe/adapter_config.json", b"{ }")
    storage.write_json("adapters/recipe/manifest.json", {"digest": f"{1:016x}"})
    policy = policy_file(root, "missing_share.ci_low > .5", head="nulls: ['null']")
    assert judge(GateConfig(str(policy), RootConfig(str(root)))) == 1
    return root


@pytest.fixture
def evidence(judged: Path, tmp_path: Path) -> Path:
    """A copy of its evidence, as another party has it."""
    return Path(shutil.copytree(judged / "gate", tmp_path / "evidence"))


def test_the_folder_holds_what_a_decision_rests_on(evidence: Path) -> None:
    names = {p.relative_to(evidence).as_posix() for p in evidence.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json", "gate.json", "gate.sarif", "gate.xml", "policy.yaml", "divergence.json", "divergence.parquet",
        "report.html", "report.json", "config.yaml", "subject.json", "model-cards/r0.md", "model-cards/a%2Fb.md",
    }  # fmt: skip
    subject = json.loads((evidence / "subject.json").read_text())
    assert (
        subject["base"] == {"name": "owner/tiny", "digest": "m" * 16}
        and subject["text"]["digest"] == "c" * 16
    )
    assert subject["adapters"]["r0"] == {
        "digest": "0" * 16,
        "judged": True,
        "sha256": {"adapter_config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},
    }
    assert set(subject["adapters"]["a/b"]["sha256"]) == {"adapter_config.json"}, (
        "a trained one lies by its recipe"
    )
    assert subject["adapters"]["null"]["judged"] is False and subject["versions"] == {"python": "3.11"}
    told = json.loads((evidence / "gate.json").read_text())
    assert told["exit_code"] == 1 and told["adapters"] == {"r0": "fired", "a/b": "clear"}
    assert told["rules"][0]["upper_bound"] is None and "not established" in told["rules"][0]["error_rate"]


@pytest.mark.parametrize("step", [41, pytest.param(1, marks=pytest.mark.prove)])
def test_a_flipped_byte_anywhere_is_named(evidence: Path, step: int) -> None:
    """Some places of every file; in the long run every byte."""
    assert first_difference(evidence) is None
    for path in sorted(p for p in evidence.rglob("*") if p.is_file()):
        name, data = path.relative_to(evidence).as_posix(), path.read_bytes()
        few = {0, len(data) // 2, len(data) - 1}
        places = range(0, len(data), step) if name == MANIFEST or step == 1 else few
        for place in places:
            for mask in (1, 0x20):
                changed = bytearray(data)
                changed[place] ^= mask
                path.write_bytes(changed)
                assert (first_difference(evidence) or "").startswith(f"{name}: "), (name, place, mask)
        path.write_bytes(data)
    assert first_difference(evidence) is None


def test_a_file_that_is_missing_or_was_added_is_named_and_the_first_comes_first(evidence: Path) -> None:
    (evidence / "zzz.txt").write_text("more")
    assert first_difference(evidence) == "zzz.txt: it is not in the manifest"
    (evidence / "report.html").unlink()
    (evidence / "divergence.parquet").write_bytes(b"")
    assert (first_difference(evidence) or "").startswith("divergence.parquet: its content differs")
    shutil.copy(evidence / "zzz.txt", evidence / MANIFEST)
    assert (first_difference(evidence) or "").startswith("manifest.json: ")


def test_a_manifest_that_points_out_of_the_folder_reads_nothing_there(evidence: Path) -> None:
    from deltasae_ray.gate.manifest import manifest_bytes

    (evidence / MANIFEST).write_bytes(manifest_bytes({"../../etc/passwd": "0" * 64}))
    with pytest.raises(StorageError, match="leads out"):
        first_difference(evidence)


def test_verify_ends_with_0_for_a_whole_folder_and_1_for_a_changed_one(
    evidence: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(GateConfig(verify=str(evidence))) == 0
    assert "not signed" in capsys.readouterr().out
    (evidence / "gate.json").write_text("{}")
    assert verify(GateConfig(verify=str(evidence))) == 1
    assert "gate.json: its content differs" in capsys.readouterr().out
    (evidence / MANIFEST).unlink()
    with pytest.raises(ConfigError, match="no manifest"):
        verify(GateConfig(verify=str(evidence)))


def test_the_model_card_has_a_model_index_and_the_words_of_the_verdict(evidence: Path) -> None:
    card = ModelCard((evidence / "model-cards" / "r0.md").read_text())
    assert card.data.base_model == "owner/tiny" and card.data.model_name == "r0"
    results = card.data.eval_results or []
    assert [(r.metric_type, r.metric_value) for r in results] == [(SHARE, 0.8)] * 2
    text = (evidence / "model-cards" / "r0.md").read_text()
    assert "**r0, layer 1: PARTLY VISIBLE**" in text and "this adapter breaks a rule" in text
    assert "not established" in text and "no proof that the adapter is harmless" in text
    assert "model-index" in yaml.safe_load(text.split("---")[1])


def test_the_same_study_and_policy_give_the_same_bytes(judged: Path, evidence: Path) -> None:
    judge(GateConfig(str(judged / "policy.yaml"), RootConfig(str(judged))))
    assert {p.name: p.read_bytes() for p in (judged / "gate").iterdir() if p.is_file()} == {
        p.name: p.read_bytes() for p in evidence.iterdir() if p.is_file()
    }


def test_a_signature_holds_for_the_folder_and_its_key_alone(judged: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="needs the extra [sign]")
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric import ec

    for name in ("own", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
        public = key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)
    root = Path(shutil.copytree(judged, tmp_path / "root"))
    policy = GateConfig(str(root / "policy.yaml"), RootConfig(str(root)), sign_key=str(tmp_path / "own.pem"))
    assert judge(policy) == 1
    evidence, own, other = str(root / "gate"), str(tmp_path / "own.pub"), str(tmp_path / "other.pub")
    assert verify(GateConfig(verify=evidence, public_key=own)) == 0
    assert verify(GateConfig(verify=evidence)) == 0
    assert verify(GateConfig(verify=evidence, public_key=other)) == 1
    whole = (root / "gate" / "signature.json").read_bytes()
    (root / "gate" / "signature.json").write_bytes(whole.replace(b"a", b"b", 1))
    assert verify(GateConfig(verify=evidence, public_key=own)) == 1
    (root / "gate" / "signature.json").unlink()
    assert verify(GateConfig(verify=evidence, public_key=own)) == 1
    with pytest.raises(ConfigError, match="cannot sign"):
        judge(GateConfig(policy.policy, policy.storage, sign_key=own))


def test_without_the_library_a_key_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("model_signing", "model_signing.signing"):
        monkeypatch.setitem(sys.modules, module, None)
    finished_study(tmp_path, {"r0": {SHARE: CALM}})
    policy = policy_file(tmp_path, "missing_share > .5")
    with pytest.raises(ConfigError, match=r"extra \[sign\]"):
        judge(GateConfig(str(policy), RootConfig(str(tmp_path)), sign_key=str(policy)))
    assert not (tmp_path / "gate").exists()


@pytest.mark.parametrize(
    ("figures", "words", "code"),
    [
        ({SHARE: CALM}, ["policy={root}/policy.yaml", "storage.root={root}"], 0),
        ({SHARE: LOUD}, ["policy={root}/policy.yaml", "storage.root={root}"], 1),
        ({SHARE: UNKNOWN}, ["policy={root}/policy.yaml", "storage.root={root}"], 3),
        ({}, ["policy={root}/nothing.yaml", "storage.root={root}"], 2),
        ({}, ["policy={root}/policy.yaml", "storage.root={root}/nothing"], 2),
        ({}, ["policy={root}/policy.yaml", "storage.rot={root}"], 2),
        ({}, ["policy={root}/policy.yaml", "verify={root}"], 2),
        ({}, ["verify={root}"], 2),
        ({}, [], 2),
    ],
)
def test_exit_codes_are_those_of_scanners(
    figures: dict, words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_study(tmp_path, {"r0": figures})
    policy_file(tmp_path, "missing_share > .5")
    monkeypatch.setattr("sys.argv", ["gate.py", *(word.format(root=tmp_path) for word in words)])
    with pytest.raises(SystemExit) as ended:
        main("Judges")
    assert ended.value.code == code


def test_the_job_and_the_example_policy_run_as_documented(tmp_path: Path) -> None:
    from deltasae_ray.metrics.measure import Measure

    loud = {"delta_relative_energy": Measure(0.9, ci=(0.8, 1.0))}
    finished_study(tmp_path, {"r0": {SHARE: CALM, "not_visible_share": CALM} | loud})
    words = ["policy=jobs/policies/release.yaml", f"storage.root={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "jobs/gate.py", *words], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1 and "large-change" in done.stdout, done.stdout + done.stderr
    results = json.loads((tmp_path / "gate" / "gate.sarif").read_text())["runs"][0]["results"]
    place = results[0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "jobs/policies/release.yaml"
    line = (
        (REPOSITORY / "jobs/policies/release.yaml").read_text().splitlines()[place["region"]["startLine"] - 1]
    )
    assert "large-change" in line
