"""Local servers of S3 and of Google Cloud Storage, and roots in them that Arrow's own clients open over
HTTP."""

import json
import os
import subprocess
import sys
import urllib.request
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
    """The URI of a folder in a new bucket; its credentials are in the environment until the monkeypatch is
    undone."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True)
    client.create_dir(bucket)
    return f"s3://{bucket}/some/study?endpoint_override={endpoint}&scheme=http"


@contextmanager
def gs_server() -> Iterator[str]:
    """Inside, an emulator of Google Cloud Storage listens at the yielded host and port.

    It is a process of its own: Arrow's client holds Python's lock while it waits for the size of a file.
    """
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.object_store"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield f"127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.wait()


def gs_root(endpoint: str, bucket: str) -> str:
    """The URI of a folder in a new bucket."""
    data = json.dumps({"name": bucket}).encode()
    request = urllib.request.Request(
        f"http://{endpoint}/storage/v1/b?project=p", data, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()
    return f"gs://anonymous@{bucket}/some/study?scheme=http&endpoint_override={endpoint}"


if __name__ == "__main__":
    from http.server import ThreadingHTTPServer

    from gcp_storage_emulator import server as emulator

    emulator.server.HTTPServer = ThreadingHTTPServer  # its own answers one connection at a time
    running = emulator.create_server("127.0.0.1", 0, in_memory=True)
    running.start()
    sys.stdout.write(f"{running._api._httpd.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the test is over, or dead
    os._exit(0)
