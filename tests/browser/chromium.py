"""A headless Chromium, spoken to over its own DevTools socket: enough to open a page, ask it questions and
take its picture."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0",
]  # fmt: skip


def shown(element: str) -> str:
    """The expression "this element is there and takes up room"."""
    return f"(e => !!e && e.getClientRects().length > 0)({element})"


class Page:
    """One tab."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._last_id = loop, socket, 0
        self.requests: list[str] = []
        """Every address the page asked for since it was opened."""
        self.errors: list[str] = []
        """What its scripts threw, and what its console called an error."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self.requests.clear()
        self._call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """The JSON-like value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 300) -> Any:
        """The first value of an expression that is neither empty nor false; an element of the page counts as
        empty."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):
                if value := self.ask(expression):
                    return value
            time.sleep(0.25)
        raise TimeoutError(
            f"{expression} stayed false for {seconds} s; the page says:"
            f" {self.ask('document.body.innerText')[:2000]}"
        )

    def click(self, element: str) -> None:
        """A real click into the middle of the element that a JavaScript expression gives, once it is shown
        and stands still."""
        self.wait_for(shown(element))
        self.ask(f"({element}).scrollIntoView({{block: 'center'}})")
        place = f"(b => [b.x + b.width / 2, b.y + b.height / 2])(({element}).getBoundingClientRect())"
        x, y = self.wait_for(
            f"new Promise(d => {{ const a = {place}; setTimeout(() => d({place}.join() == a.join() && a),"
            " 100) })"
        )
        for event in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent",
                type=event,
                x=x,
                y=y,
                button="none" if event == "mouseMoved" else "left",
                clickCount=1,
            )

    def click_until(self, element: str, done: str, *, opener: str = "") -> None:
        """Clicks until an expression holds: a page that draws itself anew between looking for an element and
        the click loses the click.

        Args:
            opener: what to click first where `element` is not shown, such as the field of a list that closed
                again.
        """
        for _ in range(10):
            if opener and not self.ask(shown(element)):
                self.click(opener)
            with contextlib.suppress(TimeoutError):
                self.wait_for(shown(element), 10)
                self.click(element)
                self.wait_for(done, 10)
                return
        raise TimeoutError(f"{done} stayed false after ten clicks on {element}")

    def picture(self, path: Path, *, whole: bool = True) -> Path:
        """A PNG of the whole page, or of what the window shows."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def _call(self, method: str, **params: object) -> dict:
        return self._loop.run_until_complete(self._exchange(method, params))

    async def _exchange(self, method: str, params: dict) -> dict:
        self._last_id += 1
        await self._socket.send_json({"id": self._last_id, "method": method, "params": params})
        while True:
            message = json.loads((await self._socket.receive(timeout=120)).data)
            if message.get("id") == self._last_id:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, params: dict) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A fresh Chromium with a fresh profile, ended by its process group; skips where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(_session())
    try:
        port = _port(profile / "DevToolsActivePort", process)
        tabs = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30).read())
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        socket = loop.run_until_complete(session.ws_connect(address, max_msg_size=0))
        yield Page(loop, socket)
    finally:
        loop.run_until_complete(session.close())
        loop.close()
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


def _port(file: Path, process: subprocess.Popen) -> int:
    for _ in range(240):
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        assert process.poll() is None, "Chromium ended at once"
        time.sleep(0.25)
    raise TimeoutError("Chromium opened no DevTools port within 60 s")
