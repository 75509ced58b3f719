"""A local server in the place of the Hugging Face hub: the part of its protocol that reading a dataset's
files by ranges takes."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Datasets are the folders `owner/name` below `root`, each of one commit."""

    root: Path
    endpoint: str = ""
    token: str = ""
    """Without which nothing is answered, where there is one."""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes that were sent of each file, as `owner/name/file`."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.hub.token and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._answer(None)
        elif found := re.fullmatch(r"/datasets/(\w+/\w+)/resolve/(\w+)/(.+)", path):
            self._file(*found.groups())
        elif found := re.fullmatch(r"/api/datasets/(\w+/\w+)/tree/(\w+)", path):
            folder = self.hub.root / found[1]
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": SHA}
                for p in sorted(folder.iterdir())
            ]
            self._answer(files if found[2] == SHA else None)
        elif found := re.fullmatch(r"/api/datasets/(\w+/\w+)(/revision/(\w+))?", path):
            there = (self.hub.root / found[1]).is_dir() and found[3] in (None, "main", SHA)
            self._answer({"id": found[1], "sha": SHA, "siblings": []} if there else None)
        else:
            self._answer(None)

    def _file(self, dataset: str, commit: str, name: str) -> None:
        path, asked = (
            self.hub.root / dataset / name,
            re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")),
        )
        if not path.is_file() or commit != SHA or not asked:  # nobody needs a whole file
            self._answer(None)
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, path.stat().st_size)
        with path.open("rb") as f:
            f.seek(start)
            self._send(206, f.read(end - start))
        self.hub.sent[f"{dataset}/{name}"] += end - start

    def _answer(self, value: object) -> None:
        self._send(404 if value is None else 200, json.dumps(value).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status != 206 else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(root: Path, *, token: str = "") -> Iterator[Hub]:
    """Inside, the datasets below `root` are served at the hub's endpoint, to those who have the token."""
    hub = Hub(root, token=token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
