"""A way to an object store on which some answers are 503 and some come late."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

REFUSED_EVERY, LATE_EVERY, LATE_S = 23, 17, 0.5


@contextmanager
def flaky(endpoint: str) -> Iterator[tuple[str, Counter[str]]]:
    """Inside, a server that passes requests on listens at the yielded host and port; every 23rd is refused
    with 503, every 17th is answered half a second late. Beside it, how often each has happened."""
    numbers, seen = count(1), Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            number = next(numbers)
            seen["asked"] += 1
            if number % REFUSED_EVERY == 0:
                seen["refused"] += 1
                self._answer(
                    503, [("Content-Type", "application/xml")], b"<Error><Code>SlowDown</Code></Error>"
                )
                return
            if number % LATE_EVERY == 0:
                seen["late"] += 1
                time.sleep(LATE_S)
            connection = http.client.HTTPConnection(endpoint, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = [
                (k, v)
                for k, v in answer.getheaders()
                if k.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
            ]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, kept, content, length)
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
