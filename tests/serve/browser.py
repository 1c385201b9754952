"""Headless Chromium through its debugging protocol: open a page, run JavaScript on it, look at it."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
from websockets.sync.client import ClientConnection, connect

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


class Page:
    """One page of a browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.number = socket, 0
        self.messages: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; what it gives. Events that come meanwhile are kept."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=20))
            if message.get("id") == self.number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.messages.append(message)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        values = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in values, values
        return values["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true."""
        for _ in range(200):
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page says: {self.run('document.body.innerText')}")

    def open(self, url: str, width: int = 1100, dark: bool = False) -> None:
        """Open an address in a window of this width."""
        self.call("Page.enable")
        self.call("Log.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith('{url}')")

    def picture(self, file: Path) -> None:
        """A screenshot."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    @property
    def complaints(self) -> list[str]:
        """Errors that the browser logged, such as violations of the Content-Security-Policy."""
        entries = [each["params"]["entry"] for each in self.messages if each.get("method") == "Log.entryAdded"]
        return [
            entry["text"] for entry in entries if entry["level"] == "error" and "favicon" not in entry.get("url", "")
        ]


@contextmanager
def chromium() -> Iterator[Page]:
    """A page of a browser of its own; the test is skipped, visibly, where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        ) as process:
            try:
                assert process.stderr is not None
                port = next(match[1] for line in process.stderr if (match := re.search(r"ws://[^:]+:(\d+)/", line)))
                listed = build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/json").read()
                address = next(each["webSocketDebuggerUrl"] for each in json.loads(listed) if each["type"] == "page")
                with connect(address, max_size=None, proxy=None) as socket:
                    yield Page(socket)
            finally:
                # Its helper processes may outlive it, and write to its folder while that is removed.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)
                assert process.stderr is not None
                process.stderr.close()
