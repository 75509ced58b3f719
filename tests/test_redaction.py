"""What a text may hold of secrets, and what it must keep: everything else."""

import logging
import string
import sys
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasae_ray.errors import ConfigError
from deltasae_ray.redaction import RedactingFormatter, redact, redacted, redacted_output
from tests.fuzz import LONG, SHORT

KEY, SECRET = "AKIAPLANTEDKEY000001", "wJalr/XUtn+FEMI/K7MDENG"
HIDES = [
    (
        f"tracking.uri='https://ann:{SECRET}@host:5000/p' does not answer",
        "tracking.uri='https://***@host:5000/p' does not answer",
    ),
    ("http://ann:hunter2@host", "http://***@host"),
    ("https://hunter2@host/x", "https://***@host/x"),
    ("postgresql+psycopg2://u:p@ss@db:5432/runs", "postgresql+psycopg2://***@db:5432/runs"),
    ("mysql://root:x'y@db/a", "mysql://***@db/a"),
    (f"s3://{KEY}:{SECRET}@bucket/prefix", "s3://***@bucket/prefix"),
    (f"s3://id:{SECRET}@bucket/prefix, gs://a:b@c", "s3://***@bucket/prefix, gs://***@c"),
    ("S3://id:abc@bucket", "S3://***@bucket"),
    ("https:/ann:hunter2@host/t.jinja cannot be read", "https:/***@host/t.jinja cannot be read"),
    ('{"root": "s3://id:abc@bucket"}', '{"root": "s3://***@bucket"}'),
    ("endpoint_override=http%3A%2F%2Fann%3Ahunter2%40host", "endpoint_override=http%3A%2F%2F***%40host"),
    (
        "s3://bucket?region=eu&secret_key=hunter2&scheme=http",
        "s3://bucket?region=eu&secret_key=***&scheme=http",
    ),
    (
        "https://h/o?X-Amz-Signature=ab12&X-Amz-Credential=AK%2F1&X-Amz-Date=2026",
        "https://h/o?X-Amz-Signature=***&X-Amz-Credential=***&X-Amz-Date=2026",
    ),
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
    "corpus.fit_tokens=2400 adapt.max_tokens=400 fit.batch_tokens=256", "pad_token='<pad>'",
    "http://127.0.0.1:5000/#/experiments/1", "key=value words",
    "http://host:8080/a@b", "owner/name@revision", "s3://bucket/prefix?region=eu-west-1", "tokens: fit 2,400",
    "HF_TOKEN_PATH=/a/b",
    "http://[::1]:5000/x@y", "hf_hub_download", "the token: give one by HF_TOKEN", "Basic arithmetic",
    "keys of what was fitted", "RAY_AUTH_MODE=token",
    "HarvestError at harvest/0123456789abcdef/rows/00001.json", "reference=base layers=[1,2]",
    "digest: 0123456789abcdef0123456789abcdef01234567",
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), HIDES)
def test_a_secret_is_hidden_and_what_stands_around_it_stays(text: str, shown: str) -> None:
    assert redact(text, {}) == shown
    assert redact(shown, {}) == shown


@pytest.mark.parametrize("text", KEEPS)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert redact(text, {}) == text


def test_values_of_secret_variables_are_hidden_wherever_and_however_they_are_spelled() -> None:
    held = {
        "HF_TOKEN": "quiet/mouse+1",
        "MY_KEY": "another'value",
        "DB_PASSWORD": "short",
        "HF_TOKEN_PATH": "/home/ann/token",
        "AWS_SECRET_ACCESS_KEY": "/slash/first",
        "CREDENTIALS": "/usr/bin",
    }
    assert redact("a quiet/mouse+1 b", held) == "a *** b"
    assert redact("a quiet%2Fmouse%2B1 b", held) == "a *** b"
    assert redact("a another'value b", held) == "a *** b"
    assert redact("a /slash/first b", held) == "a *** b"
    assert redact("a short /home/ann/token /usr/bin", held) == "a short /home/ann/token /usr/bin", (
        "a path is no secret"
    )


def test_a_value_of_the_process_environment_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plantedvalue")
    assert redact("it was plantedvalue.") == "it was ***."


def test_every_text_of_a_nested_value_is_redacted() -> None:
    value = {"root": "s3://a:b@c", "n": 3, "password": "x", "more": ["http://u:p@h", None], "max_tokens": 4}
    assert redacted(value) == {
        "root": "s3://***@c",
        "n": 3,
        "password": "***",
        "more": ["http://***@h", None],
        "max_tokens": 4,
    }


def test_a_logged_traceback_is_redacted() -> None:
    try:
        raise RuntimeError("http://ann:hunter2@host is down")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "to %s", ("http://u:p@h",), sys.exc_info())
    told = RedactingFormatter(logging.Formatter("%(levelname)s %(message)s")).format(record)
    assert (
        "hunter2" not in told
        and "u:p" not in told
        and told.startswith("ERROR to http://***@h")
        and "is down" in told
    )


def test_whatever_is_written_inside_is_redacted_and_the_streams_come_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sys.stdout, sys.stderr
    with redacted_output():
        sys.stdout.write("http://ann:hunter2@host\n")
        sys.stderr.writelines(["token=hunter2\n", "plain\n"])
    printed = capsys.readouterr()
    assert printed.out == "http://***@host\n" and printed.err == "token=***\nplain\n"
    assert (sys.stdout, sys.stderr) == before


def test_a_typed_error_never_holds_a_secret() -> None:
    assert (
        str(ConfigError("tracking.uri='http://ann:hunter2@host' is wrong"))
        == "tracking.uri='http://***@host' is wrong"
    )


SECRETS = (
    st.text(string.ascii_letters + string.digits + "/+=_-.~!$&()*,;@: ", min_size=6)
    .map(str.strip)
    .filter(lambda s: len(s) >= 6 and any(c.isalpha() for c in s))
)
PLACES = (
    "http://ann:{quoted}@host:5000/a", "see 's3://ann:{quoted}@bucket/prefix' now",
    "postgresql://ann:{quoted}@db/x?a=b", "https://{quoted}@host",
    "https://host/o?region=eu&X-Amz-Signature={quoted}&a=b", '{{"password": "{raw}"}}', "MY_TOKEN='{raw}'",
    "{{'env_vars': {{'DB_PASSWORD': '{raw}'}}}}",
    "it was {raw}.", "https://host/{quoted}/x",
)  # fmt: skip


def holds_no_secret(secret: str, place: str) -> None:
    text = place.format(raw=secret, quoted=quote(secret, safe=""))
    shown = redact(text, {"MY_SECRET": secret} if len(secret) >= 8 else {})
    known = len(secret) >= 8 or not place.startswith(("it was", "https://host/{"))
    assert not known or (secret not in shown.replace("***", "") and quote(secret, safe="") not in shown), (
        text,
        shown,
    )
    assert redact(shown, {}) == shown


@given(SECRETS, st.sampled_from(PLACES))
@SHORT
def test_no_secret_is_left_in_any_place(secret: str, place: str) -> None:
    holds_no_secret(secret, place)


@pytest.mark.prove
@given(SECRETS, st.sampled_from(PLACES))
@LONG
def test_no_secret_of_ten_thousand_is_left_in_any_place(secret: str, place: str) -> None:
    holds_no_secret(secret, place)


@given(st.text(), st.dictionaries(st.sampled_from(["A_TOKEN", "B_KEY", "PLAIN"]), st.text()))
@SHORT
def test_any_text_is_redacted_without_an_error(text: str, held: dict[str, str]) -> None:
    redact(text, held)
