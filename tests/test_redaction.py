"""What a text may hold of secrets, and what it must keep: everything else."""

import logging
import sys

import pytest

from deltasae_ray.redaction import RedactingFormatter, redact, redacted

KEY, SECRET = "AKIAPLANTEDKEY000001", "wJalr/XUtn+FEMI/K7MDENG"
HIDES = [
    (f"tracking.uri='https://ann:{SECRET}@host:5000/p' does not answer", "tracking.uri='https://***@host:5000/p' does not answer"),
    ("http://ann:hunter2@host", "http://***@host"),
    ("https://hunter2@host/x", "https://***@host/x"),
    ("postgresql+psycopg2://u:p@ss@db:5432/runs", "postgresql+psycopg2://***@db:5432/runs"),
    ("mysql://root:x'y@db/a", "mysql://***@db/a"),
    (f"s3://{KEY}:{SECRET}@bucket/prefix", "s3://***@bucket/prefix"),
    (f"s3://id:{SECRET}@bucket/prefix, gs://a:b@c", "s3://***@bucket/prefix, gs://***@c"),
    ("S3://id:abc@bucket", "S3://***@bucket"),
    ('{"root": "s3://id:abc@bucket"}', '{"root": "s3://***@bucket"}'),
    ("endpoint_override=http%3A%2F%2Fann%3Ahunter2%40host", "endpoint_override=http%3A%2F%2F***%40host"),
    ("s3://bucket?region=eu&secret_key=hunter2&scheme=http", "s3://bucket?region=eu&secret_key=***&scheme=http"),
    ("https://h/o?X-Amz-Signature=ab12&X-Amz-Credential=AK%2F1&X-Amz-Date=2026", "https://h/o?X-Amz-Signature=***&X-Amz-Credential=***&X-Amz-Date=2026"),
    ("https://h/o?sv=1&sig=a%2Fb%3D", "https://h/o?sv=1&sig=***"),
    ("https://h/o?access_token=x1&a=b", "https://h/o?access_token=***&a=b"),
    ("hub said: token hf_AbCdEfGhIjKlMnOpQrSt is gone", "hub said: token *** is gone"),
    (f"key {KEY} is unknown", "key *** is unknown"),
    ("{'Authorization': 'Bearer abc.def-ghi'}", "{'Authorization': '***'}"),
    ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
    ("sent Bearer 0123456789abcdef", "sent Bearer ***"),
    ('"password": "hunter 2", "user": "ann"', '"password": "***", "user": "ann"'),
    ("AWS_SECRET_ACCESS_KEY=hunter2 python x.py", "AWS_SECRET_ACCESS_KEY=*** python x.py"),
    ("api_key: hunter2", "api_key: ***"),
    ("{'env_vars': {'AWS_SESSION_TOKEN': 'hunter2'}}", "{'env_vars': {'AWS_SESSION_TOKEN': '***'}}"),
    ("-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----", "***"),
]
KEEPS = [
    "corpus.fit_tokens=2400 adapt.max_tokens=400 fit.batch_tokens=256", "pad_token='<pad>'", "http://127.0.0.1:5000/#/experiments/1", "key=value words",
    "http://host:8080/a@b", "owner/name@revision", "s3://bucket/prefix?region=eu-west-1", "tokens: fit 2,400", "HF_TOKEN_PATH=/a/b",
    "http://[::1]:5000/x@y", "hf_hub_download", "the token: give one by HF_TOKEN", "Basic arithmetic", "keys of what was fitted", "RAY_AUTH_MODE=token",
    "HarvestError at harvest/0123456789abcdef/rows/00001.json", "reference=base layers=[1,2]", "digest: 0123456789abcdef0123456789abcdef01234567",
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), HIDES)
def test_a_secret_is_hidden_and_what_stands_around_it_stays(text: str, shown: str) -> None:
    assert redact(text, {}) == shown
    assert redact(shown, {}) == shown


@pytest.mark.parametrize("text", KEEPS)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert redact(text, {}) == text


def test_values_of_secret_variables_are_hidden_wherever_and_however_they_are_spelled() -> None:
    held = {"HF_TOKEN": "quiet/mouse+1", "MY_KEY": "another'value", "DB_PASSWORD": "short", "HF_TOKEN_PATH": "/home/ann/token", "HOME": "/home/ann"}
    assert redact("a quiet/mouse+1 b", held) == "a *** b"
    assert redact("a quiet%2Fmouse%2B1 b", held) == "a *** b"
    assert redact("a another'value b", held) == "a *** b"
    assert redact("a short /home/ann/token", held) == "a short /home/ann/token"


def test_a_value_of_the_process_environment_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plantedvalue")
    assert redact("it was plantedvalue.") == "it was ***."


def test_every_text_of_a_nested_value_is_redacted() -> None:
    value = {"root": "s3://a:b@c", "n": 3, "password": "x", "more": ["http://u:p@h", None], "max_tokens": 4}
    assert redacted(value) == {"root": "s3://***@c", "n": 3, "password": "***", "more": ["http://***@h", None], "max_tokens": 4}


def test_a_logged_traceback_is_redacted() -> None:
    try:
        raise RuntimeError("http://ann:hunter2@host is down")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "to %s", ("http://u:p@h",), sys.exc_info())
    told = RedactingFormatter(logging.Formatter("%(levelname)s %(message)s")).format(record)
    assert "hunter2" not in told and "u:p" not in told and told.startswith("ERROR to http://***@h") and "is down" in told
