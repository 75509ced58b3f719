"""A local S3 server, and roots in it that Arrow's own client opens over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs as pafs
import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """Inside, a server listens at the yielded host and port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()


def s3_root(endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a folder in a new bucket; its credentials are in the environment until the monkeypatch is undone."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True)
    client.create_dir(bucket)
    return f"s3://{bucket}/some/study?endpoint_override={endpoint}&scheme=http"
