"""`offramp serve` as a process of its own where torch does not exist: it answers, and drains on SIGTERM."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest

from offramp.early_exit.policy import ExitPolicy

ROOT = Path(__file__).parents[2]
ALONE = (ROOT / "tests/conftest.py").read_text().split('ALONE = """')[1].split('"""')[0]
SLOW = """
import time
from offramp.serve.running import RunningBatch
advance = RunningBatch.advance
def slow(batch):
    time.sleep(0.7)
    advance(batch)
RunningBatch.advance = slow
"""


@contextmanager
def serving(
    bundle: Path, *words: str, program: str = "", **more: str | None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The program in a process of its own without torch, and its address."""
    start = "from offramp.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", ALONE + program + start, "serve", str(bundle), "--port", "0", "--max-batch", "2"]
    changed = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    environment = {name: value for name, value in changed.items() if value is not None}
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


def test_requests_in_progress_are_answered_after_sigterm(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    copy = Path(copytree(folder, tmp_path / "digits"))
    patient = ExitPolicy(thresholds=(1e8,) * 3, enabled=(True,) * 3)  # so that there are three slow segments to run
    (copy / "policy-2.json").write_text(patient.to_json())
    words = ("--log", "none", "--token-file", str(tmp_path / "token"))
    home = tmp_path / "home"
    home.mkdir()
    # Without the variables by which ONNX Runtime notices tests, in which it sends no usage data.
    unset = dict.fromkeys(("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"))
    with serving(copy, *words, program=SLOW, HOME=str(home), **unset) as (process, url):
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
        batches = "offramp_batch_size_count"
        while True:  # until the first of them has run
            text = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}, trust_env=False).text
            counts = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(batches)]
            if max(counts) > 0:
                break
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    assert not list(home.iterdir())  # such as the identifier with which ONNX Runtime sends usage data
    assert [answer.status_code for answer in answers] == [200]
    assert answers[0].json()["outputs"][4]["data"] == [3]


def test_requests_that_are_not_answered_in_time_after_sigterm(
    folder: Path, tmp_path: Path, images: list[bytes]
) -> None:
    """After `--drain-timeout`, they get status 503 and one sentence, and nothing is computed for them any more."""
    copy = Path(copytree(folder, tmp_path / "digits"))
    answers: list[httpx.Response] = []
    pixels = {"name": "image", "shape": [2, 1, 8, 8], "datatype": "UINT8", "data": [0] * 128}

    def ask(number: int) -> None:
        more: Any = {"json": {"inputs": [pixels]}} if number % 2 else {"files": [("images", images[0])] * 2}
        path = ("predict", "v2/models/digits/infer", "predict?top=2", "v2/models/digits/infer")[number % 4]
        answers.append(httpx.post(f"{url}/{path}", trust_env=False, timeout=120, **more))

    words = ("--log", "errors", "--drain-timeout", "1")
    with serving(copy, *words, program=SLOW) as (process, url):
        asking = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in asking:
            thread.start()
        while sum(httpx.get(f"{url}/status", trust_env=False).json()[0]["waiting"]) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(120) == 0
        seconds = time.monotonic() - began
        for thread in asking:
            thread.join(120)
        assert process.stderr is not None
        log = process.stderr.read()
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) == 12 and len(refused) > 6 and {answer.status_code for answer in refused} == {503}
    says = {"error": "the server has stopped before it could answer: send the request again"}
    assert all(answer.json() == says and answer.headers["Retry-After"] == "1" for answer in refused)
    assert "Traceback" not in log and seconds < 0.7 * len(refused)  # their first segment alone would take longer
    lines = [json.loads(line) for line in log.splitlines()]  # what uvicorn says is in our log, too
    (said,) = [line for line in lines if line["event"] == "server"]
    assert (said["level"], said["source"]) == ("error", "uvicorn.error") and said["message"].startswith("Cancel ")


@pytest.mark.parametrize(("known", "seconds"), [(False, 0.5), (True, 600)])
def test_a_cluster_that_is_lost_does_not_keep_the_server(folder: Path, known: bool, seconds: float) -> None:
    """Calls of Ray wait for a lost cluster; the process ends in spite of them, with one sentence."""
    pytest.importorskip("ray")
    program = f"""
import contextlib, time
from offramp.serve import models, ray_app, ray_deployments
@contextlib.contextmanager
def opened(address):
    opener = ray_deployments.RayOpener(None)
    opener.lost = {known}
    try:
        yield opener
    finally:
        time.sleep(600)
ray_app.opened, ray_deployments.ENDING = opened, {seconds}
ray_deployments.RayOpener.__call__ = lambda self, *arguments: models.open_model(*arguments)  # in this process
"""
    with serving(folder, "--engine", "ray", "--log", "none", program=program) as (process, url):
        ready(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 1
        assert process.stderr is not None
        says = "its cluster is lost, or `serve status` shows there what is left"
        assert process.stderr.read() == f"offramp: Ray did not end within {seconds:g} s: {says}\n"
