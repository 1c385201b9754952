"""Large bodies and answers: read and written as small ones are, bounded, and without holding up other requests."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.bundle.read import Bundle
from offramp.serve import infer, large_json, predict, receive
from offramp.serve.errors import RequestError
from offramp.serve.large_json import FRAME, LARGE, check, dumps, effort, loads, numbers, texts
from offramp.serve.server import Server

pytestmark = pytest.mark.usefixtures("quick")
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(-1e38, 1e38) | st.sampled_from([-0.0, 10**400])


@settings(deadline=None, max_examples=100)
@given(st.lists(NUMBERS, max_size=20), st.sampled_from([1, 2, 7]))
def test_numbers_are_those_that_json_and_numpy_read(values: list[Any], piece: int) -> None:
    """Of large texts as of small ones, wherever they are divided."""
    text = json.dumps({"data": values, "more": [True, None, "é", {}]}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "PIECE", piece)
        patch.setattr(large_json, "VERY_LARGE", 0)
        assert repr(loads(text)) == repr(json.loads(text))
        array = numbers(values, 1)
        whole = np.asarray(values)
        if whole.dtype.kind in "iuf" and array is not None:
            assert array.astype(np.float32).tobytes() == whole.astype(np.float32).tobytes()
            assert json.loads(b"[%s]" % b",".join(texts(array))) == array.tolist()
        else:
            assert whole.dtype.kind == "O" or array is None


@pytest.mark.parametrize("data", [[True, *range(9)], [*range(9), False], [[1, 2], [3, True]], ["1"], [None], [{}]])
def test_what_is_no_number(data: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "PIECE", 2)
    assert numbers(data, 2) is None


@pytest.mark.parametrize("data", [[[1], 2], [1, [2]], [[1, 2], [3]], [[[1]]], [[], [1]], [[1], [[2]]]])
def test_lists_that_differ(data: list[Any]) -> None:
    with pytest.raises(ValueError):
        numbers(data, 2)


def test_nested_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "PIECE", 3)
    wanted = np.arange(120).reshape(2, 3, 4, 5)
    assert (numbers(wanted.tolist(), 4) == wanted).all()  # type: ignore[union-attr]


def test_what_is_larger_than_any_tensor_is_refused_before_it_is_read() -> None:
    """4 images of one channel and 8 x 8 pixels: 256 values, and 41 lists if they are nested."""
    space = b" " * LARGE
    for text in (b"0," * (256 + FRAME), b"[" * (41 + FRAME), b"{" * (41 + FRAME), b"[" * FRAME + b"{" * 41):
        check(space + text, (4, 1, 8, 8))
        check(text + text[-1:], (4, 1, 8, 8))  # a small body costs nothing
    with pytest.raises(RequestError, match=r"inputs\[0\].data has more values than 4 images, the most that a request"):
        check(space + b"0," * (257 + FRAME), (4, 1, 8, 8))
    with pytest.raises(RequestError, match="more lists or objects than a tensor of 4 images needs"):
        check(space + b"[]" * FRAME + b"{}" * 42, (4, 1, 8, 8))


def test_a_list_of_items() -> None:
    assert json.loads(dumps({"a": [1]}, "b", [b'{"c": 1}', b"2"])) == {"a": [1], "b": [{"c": 1}, 2]}


def test_other_requests_are_answered_while_a_large_one_is_read(folder: Path) -> None:
    """30 MB of numbers, in a body that is refused once they are read."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8]}
    body = json.dumps({"inputs": [tensor]})[:-3] + ', "data": [' + "0.5," * 7_500_000 + "0.5]}]}"
    many = 7_500_001 // 64 + 1
    with (
        Server(folder, port=0, max_images=many, queue=many, max_body=1 << 26, log="none") as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=200) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        address, budget = f"{server.url}/v2/models/digits/infer", server.app.state.context.budget
        large = pool.submit(httpx.post, address, content=body, trust_env=False, timeout=200)
        while budget.taken < len(body):
            time.sleep(0.005)
        answered = 0
        while not large.done():
            answered += client.get("/v2/health/live").status_code == 200
        assert large.result().status_code == 400 and "has 7500001 values" in large.result().json()["error"]
    assert answered > 5


@pytest.mark.parametrize("step", ["loads", "numbers", "texts"])
def test_other_threads_get_their_turns(step: str) -> None:
    values = [0.5] * 2_000_000
    text, array, started = json.dumps(values).encode(), np.asarray(values), threading.Event()
    steps = {
        "loads": lambda: loads(text),
        "numbers": lambda: numbers(values, 1),
        "texts": lambda: list(texts(array)),
    }

    def work() -> None:
        started.set()
        steps[step]()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 0).result()  # the thread is there
        working, turns = pool.submit(work), 0
        started.wait()
        while not working.done():
            time.sleep(0.001)
            turns += 1
    assert turns > 3


@pytest.mark.parametrize(
    ("body", "aside"),
    [
        (b"1234," * (LARGE // 5), False),
        (b"1234," * (LARGE // 4), True),
        (b'["' + b"YWFh" * LARGE + b'"]', False),  # images as texts
        (b'["' + b"YWFh" * 5 * LARGE + b'"]', True),
    ],
)
def test_texts_are_large_only_if_they_are_longer_than_numbers(body: bytes, aside: bool) -> None:
    assert (effort(body) > LARGE) is aside


@pytest.mark.parametrize(("size", "aside"), [(LARGE, False), (LARGE + 1, True)])
def test_only_what_is_large_is_handed_to_a_thread(size: int, aside: bool) -> None:
    class Context:
        converting = asyncio.Semaphore(1)

    context: Any = Context()
    thread = asyncio.run(receive.converted(context, size, threading.get_ident))
    assert (thread != threading.get_ident()) is aside


def test_everything_that_grows_with_a_request_is_done_aside(
    folder: Path, images: list[bytes], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[str]] = {}

    def noted(module: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        def note(*arguments: Any) -> Any:
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return function(*arguments)

        monkeypatch.setattr(module, name, note)

    for module, name in ((infer, "parse"), (infer, "render"), (predict, "multipart"), (predict, "_answer")):
        noted(module, name)
    body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": [0] * 64}]}
    with Server(folder, port=0, log="none") as server:
        for large in (False, True):
            threads.clear()
            monkeypatch.setattr(receive, "LARGE", -1 if large else LARGE)
            sent = httpx.post(f"{server.url}/v2/models/digits/infer", json=body, trust_env=False)
            form = httpx.post(f"{server.url}/predict", files={"images": images[0]}, trust_env=False)
            assert (sent.status_code, form.status_code) == (200, 200) and len(threads) == 4
            assert all((names == {"offramp-server"}) is not large for names in threads.values())
