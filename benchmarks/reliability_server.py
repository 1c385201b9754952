"""`offramp serve` in a process of its own, which can be killed and started again."""

import socket
import sys
import time
import urllib.request
from pathlib import Path
from subprocess import DEVNULL, Popen


class Server:
    """`offramp serve` in a process of its own, always on the same port."""

    def __init__(self, bundle: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.bundle, self.log, self.starts = bundle, log, 0
        self.process: Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        words = ["--body-timeout", "3", "--max-body", "200000", "--max-images", "8", "--log", "errors"]
        command = [sys.executable, "-m", "offramp", "serve", str(self.bundle), "--port", str(self.port), *words]
        with self.log.open("ab") as log:
            self.process = Popen(command, stdout=DEVNULL, stderr=log)
        self.starts += 1
        end = time.monotonic() + 120
        while True:
            try:
                self.get("/v2/health/ready")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not start: {self.log.read_text()[-2000:]}") from None
                time.sleep(0.1)

    def get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        content: bytes = opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=20).read()
        return content

    def end(self, number: int) -> int:
        """Send it a signal and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def holds(self) -> dict[str, float]:
        """Memory (MiB), open files and threads."""
        assert self.process is not None
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        return {
            "mib": int(status.split("VmRSS:")[1].split()[0]) / 1024,
            "files": len(list((folder / "fd").iterdir())),
            "threads": int(status.split("Threads:")[1].split()[0]),
        }
