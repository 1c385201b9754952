"""offramp serve: a process of its own that answers, drains on SIGTERM, and runs where torch does not exist."""

import inspect
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import nn

from offramp.bundle.write import write
from offramp.cli.serve import serve
from offramp.data.load import load
from offramp.early_exit.policy import ExitPolicy
from offramp.net import Branch, Head, MultiExitNet

Offramp = Callable[..., Any]
ROOT = Path(__file__).parents[2]
ALONE = (ROOT / "tests/conftest.py").read_text().split('ALONE = """')[1].split('"""')[0]
SLOW = """
import time, offramp.serve.rows as rows
run = rows.run
import offramp.serve.engine as engine
def slow(*words):
    time.sleep(1.0)
    return run(*words)
engine.run = slow
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained bundle of two exits on digits."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(1 if n == 0 else 4, 4, 3, padding=1), nn.ReLU()) for n in range(2)]
    net = MultiExitNet(stages, [Branch(nn.Identity(), Head(4, 10)) for _ in range(2)])
    folder = tmp_path_factory.mktemp("serve") / "digits"
    write(folder, net, ExitPolicy(thresholds=(1e8, 0.0), enabled=(True, True)), load("digits"), images=50)
    return folder


@contextmanager
def serving(bundle: Path, *words: str, program: str = "", **more: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The program in a process of its own without torch, and its address."""
    start = "from offramp.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", ALONE + program + start, "serve", str(bundle), "--port", "0", "--max-batch", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            match = re.fullmatch(r"serving digits at (http://127\.0\.0\.1:\d+)\n", line)
            assert match is not None, line + process.stderr.read()
            yield process, match[1]
        finally:
            process.kill()


def ready(url: str) -> None:
    transport = httpx.HTTPTransport(retries=50)
    with httpx.Client(transport=transport, trust_env=False, timeout=30) as client:
        for _ in range(600):
            try:
                if client.get(f"{url}/v2/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                continue
    raise AssertionError("it is never ready")


def test_requests_in_progress_are_answered_after_sigterm(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    words = ("--log", "none", "--token-file", str(tmp_path / "token"))
    with serving(bundle, *words, program=SLOW) as (process, url):
        ready(url)
        assert httpx.post(f"{url}/predict", trust_env=False).status_code == 401
        answers: list[httpx.Response] = []

        def ask() -> None:
            headers = {"Authorization": "Bearer secret"}
            tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}
            answers.append(
                httpx.post(
                    f"{url}/v2/models/digits/infer",
                    json={"inputs": [tensor]},
                    headers=headers,
                    trust_env=False,
                    timeout=60,
                )
            )

        asking = threading.Thread(target=ask)
        asking.start()
        waiting = "offramp_batch_size_count"
        while True:  # until the first of two slow segments has run
            text = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}, trust_env=False).text
            counts = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(waiting)]
            if max(counts) > 0:
                break
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    assert [answer.status_code for answer in answers] == [200]
    assert answers[0].json()["outputs"][4]["data"] == [2]


def test_every_option_is_documented() -> None:
    section = (ROOT / "docs/commands.md").read_text().split("\n## serve\n")[1].split("\n## ")[0]
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters} - {"--bundles"}
    assert set(re.findall(r"--[a-z][a-z-]*", section)) == options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "name at least one bundle"),
        (("nowhere",), "there is no folder nowhere"),
        (("{bundle}", "--port", "70000"), "--port must be from 0 to 65535, got 70000"),
        (("{bundle}", "--max-batch", "0"), "--max-batch must be at least 1, got 0"),
        (("{bundle}", "--deadline-ms", "0"), "--deadline-ms must be a positive number, got 0"),
        (("{bundle}", "--token-file", "nowhere"), "there is no file nowhere"),
        (("{bundle}", "--runtime", "tensorrt"), "tensorrt"),
    ],
)
def test_words_that_make_no_sense(offramp: Offramp, bundle: Path, words: tuple[str, ...], says: str) -> None:
    ran = offramp("serve", *(word.format(bundle=bundle) for word in words))
    assert ran.status == 2 and says in ran.err and ran.err.count("\n") == 1


def test_a_folder_without_bundle(offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp("serve", tmp_path, "--port", "0")
    assert ran.status == 1 and "is not a bundle: it has no manifest.json" in ran.err and ran.err.count("\n") == 1


def test_what_is_not_installed(offramp: Offramp, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ran = offramp("serve", bundle, "--port", "0")
    assert ran.status == 1 and "serving needs uvicorn: pip install 'offramp[serve]'" in ran.err
