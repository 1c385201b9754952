"""The server over HTTP, as clients meet it: the Open Inference Protocol, multipart, several models, limits, errors."""

import asyncio
import base64
import gc
import io
import json
import re
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import FastAPI
from PIL import Image

import offramp
from offramp.bundle.manifest import render
from offramp.bundle.read import Bundle, open_bundle, read_manifest
from offramp.early_exit.policy import ExitPolicy
from offramp.serve import protocol
from offramp.serve import versions as served_versions
from offramp.serve.predictor import AsyncPredictor
from offramp.serve.server import Server

pytestmark = pytest.mark.usefixtures("quick")
SHAPE = [1, 8, 8]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with two versions of a model; the second lets no image exit early."""
    path = tmp_path_factory.mktemp("versions") / "many"
    copytree(folder, path / "1")
    copytree(folder, path / "2")
    policy = ExitPolicy(thresholds=(1e8,) * 3, enabled=(True,) * 3)
    (path / "2" / "policy-2.json").write_text(policy.to_json())
    return path


@pytest.fixture(scope="module")
def server(folder: Path, versions: Path) -> Iterator[Server]:
    with offramp.Server(folder, f"many={versions}", port=0, max_images=8, max_body=100_000, log="none") as running:
        yield running


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{number}.png", image)) for number, image in enumerate(images)]


def tensor(values: np.ndarray, **more: Any) -> dict[str, Any]:
    kind = {"float32": "FP32", "uint8": "UINT8"}[values.dtype.name]
    arguments = {
        "name": "image",
        "shape": list(values.shape),
        "datatype": kind,
        "data": values.ravel().tolist(),
        **more,
    }
    return {"inputs": [arguments]}


def _all(connection: socket.socket) -> bytes:
    """Everything that a server sends before it closes a connection."""
    try:
        return b"".join(iter(lambda: connection.recv(4096), b""))
    except ConnectionError:
        return b""


class TestTriton:
    def test_server_and_models(self, remote: Any) -> None:
        assert remote.is_server_live() and remote.is_server_ready()
        assert remote.is_model_ready("digits") and remote.is_model_ready("many", "1")
        assert not remote.is_model_ready("other")
        about = remote.get_server_metadata()
        assert (about["name"], about["version"]) == ("offramp", offramp.__version__)
        assert about["extensions"] == ["binary_tensor_data", "model_repository"]
        model = remote.get_model_metadata("many")
        assert model["versions"] == ["1", "2", "2.2"]
        assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]}]
        assert {"name": "logits", "datatype": "FP32", "shape": [-1, 10]} in model["outputs"]
        index = remote.get_model_repository_index()
        assert [(each["name"], each["version"], each["state"]) for each in index] == [
            *[("digits", "1", "READY"), ("many", "1", "READY"), ("many", "2", "READY"), ("many", "2.2", "READY")],
        ]

    @pytest.mark.parametrize("binary_in", [True, False])
    @pytest.mark.parametrize("binary_out", [True, False])
    def test_inputs_and_outputs(
        self, remote: Any, bundle: Bundle, pixels: np.ndarray, binary_in: bool, binary_out: bool
    ) -> None:
        inputs = bundle.manifest.preprocessing.normalise(pixels[:6])
        wanted = bundle.answer(inputs)
        sent = triton.InferInput("image", list(inputs.shape), "FP32")
        sent.set_data_from_numpy(inputs, binary_data=binary_in)
        names = ("logits", "class", "label", "exit", "score", "probability", "at_deadline", "error", "ms")
        asked = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
        result = remote.infer("digits", [sent], outputs=asked, request_id="seven")
        assert result.get_response()["id"] == "seven" and result.get_response()["model_version"] == "1"
        assert np.abs(result.as_numpy("logits").reshape(6, 10) - wanted.logits).max() < 1e-4
        assert result.as_numpy("exit").tolist() == (wanted.exit + 1).tolist()
        assert result.as_numpy("class").tolist() == wanted.logits.argmax(1).tolist()
        labels = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("label")]
        assert labels == [bundle.manifest.classes[number] for number in wanted.logits.argmax(1)]
        assert np.abs(result.as_numpy("score") - wanted.score).max() < 1e-5
        assert not result.as_numpy("at_deadline").any() and (result.as_numpy("ms") > 0).all()

    def test_all_outputs_by_default(self, remote: Any, pixels: np.ndarray) -> None:
        sent = triton.InferInput("image", [2, *SHAPE], "UINT8")
        sent.set_data_from_numpy(pixels[:2])
        result = remote.infer("digits", [sent])
        assert result.as_numpy("logits").shape == (2, 10) and result.as_numpy("error").tolist() == [b"", b""]

    def test_versions(self, remote: Any, pixels: np.ndarray) -> None:
        sent = triton.InferInput("image", [8, *SHAPE], "UINT8")
        sent.set_data_from_numpy(pixels[:8])
        exits = {
            version: remote.infer("many", [sent], model_version=version).as_numpy("exit").tolist()
            for version in ("1", "2", "2.2", "")
        }
        assert exits["1"] == exits["2"] != [3] * 8 and exits["2.2"] == exits[""] == [3] * 8  # the latest by default

    def test_encoded_images(self, remote: Any, images: list[bytes], bundle: Bundle, pixels: np.ndarray) -> None:
        sent = triton.InferInput("image", [3], "BYTES")
        sent.set_data_from_numpy(np.array([images[0], b"no image", images[1]], dtype=object))
        result = remote.infer("digits", [sent])
        wanted = bundle.answer(bundle.manifest.preprocessing.normalise(pixels[:2]))
        assert result.as_numpy("exit").tolist() == [wanted.exit[0] + 1, 0, wanted.exit[1] + 1]
        assert result.as_numpy("class")[1] == -1 and result.as_numpy("label")[1] == b""
        errors = result.as_numpy("error").tolist()
        assert errors[0] == errors[2] == b"" and b"image" in errors[1]

    def test_errors_reach_the_client(self, remote: Any) -> None:
        sent = triton.InferInput("image", [1, 3, 8, 8], "FP32")
        sent.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
        with pytest.raises(triton.InferenceServerException, match=r"inputs\[0\].shape must be \[N, 1, 8, 8\] for the"):
            remote.infer("digits", [sent])

    def test_load_and_unload(self, remote: Any, server: Server) -> None:
        remote.unload_model("many")
        assert not remote.is_model_ready("many") and remote.is_model_ready("digits")
        assert {"name": "many", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"} in (
            remote.get_model_repository_index()
        )
        loaded = httpx.post(f"{server.url}/v2/repository/index", json={"ready": True}, trust_env=False).json()
        assert [each["name"] for each in loaded] == ["digits"]
        remote.load_model("many")
        assert remote.is_model_ready("many", "2.2")
        with pytest.raises(triton.InferenceServerException, match="a model is loaded as its folder is: send none"):
            remote.load_model("many", config="{}")
        with pytest.raises(triton.InferenceServerException, match="there is no model 'none' here"):
            remote.load_model("none")


class TestPredict:
    def test_keys_of_predict(self, client: httpx.Client, folder: Path, images: list[bytes], tmp_path: Path) -> None:
        for number, image in enumerate(images[:3]):
            (tmp_path / f"{number}.png").write_bytes(image)
        wanted = list(offramp.load_bundle(folder).predict([tmp_path]))
        answer = client.post("/predict", files=files(*images[:3])).json()
        assert (answer["model"], answer["version"]) == ("digits", "1")
        for row, right in zip(answer["predictions"], wanted, strict=True):
            assert list(row) == [*right.row(3), "at_deadline"]
            assert (row["image"], row["label"], row["class"]) == (Path(right.image).name, right.label, right.index)
            assert right.exit is not None and row["exit"] == right.exit + 1 and row["final"] == (right.exit == 2)
            assert row["probability"] == pytest.approx(right.probability, abs=1e-5)
            assert row["error"] is None and row["ms"] > 0 and row["at_deadline"] is False

    def test_jpeg_png_and_webp(self, client: httpx.Client, images: list[bytes]) -> None:
        with Image.open(io.BytesIO(images[0])) as image:
            streams = {name: io.BytesIO() for name in ("PNG", "WEBP", "JPEG")}
            for name, stream in streams.items():
                image.save(stream, name, **{"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(name, {}))
        response = client.post("/predict", files=files(*(stream.getvalue() for stream in streams.values())))
        png, webp, jpeg = response.json()["predictions"]
        assert (webp["label"], webp["exit"]) == (png["label"], png["exit"]) and jpeg["error"] is None
        assert webp["probability"] == pytest.approx(png["probability"], abs=1e-5)

    def test_an_unreadable_image_is_its_own_error(self, client: httpx.Client, images: list[bytes]) -> None:
        response = client.post("/predict", files=files(images[0], images[1][:60], b"", b"GIF89a"))
        rows = response.json()["predictions"]
        assert response.status_code == 200 and rows[0]["error"] is None and rows[0]["label"]
        assert [row["label"] for row in rows[1:]] == [None] * 3 and all(row["error"] for row in rows[1:])
        assert rows[2]["error"] == "it is empty"

    def test_top_and_reject(self, client: httpx.Client, images: list[bytes]) -> None:
        row = client.post("/predict?top=3", files=files(images[0])).json()["predictions"][0]
        assert len(row["top"]) == 3 and row["top"][0]["label"] == row["label"]
        assert row["top"][0]["probability"] == pytest.approx(row["probability"])
        assert row["top"][0]["probability"] >= row["top"][1]["probability"] >= row["top"][2]["probability"]
        row = client.post("/predict?top=3&reject=1", files=files(images[0])).json()["predictions"][0]
        assert (row["rejected"], row["label"], row["class"]) == (True, None, None) and row["top"]
        row = client.post("/predict?reject=0.01", files=files(images[0])).json()["predictions"][0]
        assert row["rejected"] is False and row["label"]

    def test_what_every_exit_says(self, client: httpx.Client, images: list[bytes], bundle: Bundle) -> None:
        row = client.post("/predict?all_exits=true", files=files(images[0])).json()["predictions"][0]
        assert [each["exit"] for each in row["exits"]] == [1, 2, 3]
        ours = row["exits"][row["exit"] - 1]
        assert ours["leaves"] and (ours["label"], ours["class"]) == (row["label"], row["class"])
        assert ours["probability"] == pytest.approx(row["probability"], abs=1e-5)
        costs = [each["cost"] for each in row["exits"]]
        assert costs == sorted(costs) and costs[-1] == 1 and 0 < costs[0] < 1

    def test_model_version_and_deadline(self, client: httpx.Client, images: list[bytes]) -> None:
        answer = client.post("/predict?model=many&version=1&deadline_ms=60000", files=files(images[0])).json()
        assert (answer["model"], answer["version"]) == ("many", "1")
        tight = client.post("/predict?model=many&version=2.2&deadline_ms=0.001", files=files(images[0])).json()
        assert tight["predictions"][0]["exit"] == 1 and tight["predictions"][0]["at_deadline"] is True

    @pytest.mark.parametrize(
        ("query", "says"),
        [
            ("top=0", "top: Input should be greater than or equal to 1"),
            ("reject=2", "reject: Input should be less than or equal to 1"),
            ("deadline_ms=0", "deadline_ms: Input should be greater than 0"),
            ("deadline_ms=nan", "deadline_ms: Input should be"),
            ("all_exits=perhaps", "all_exits: Input should be a valid boolean"),
            ("rejct=0.5", "/predict has no query parameter 'rejct'; the nearest is 'reject'"),
            ("top=3&top=4", "top: send it once"),
        ],
    )
    def test_queries_that_make_no_sense(self, client: httpx.Client, images: list[bytes], query: str, says: str) -> None:
        response = client.post(f"/predict?{query}", files=files(images[0]))
        assert response.status_code == 400 and response.json()["error"].startswith(says)

    @pytest.mark.parametrize(
        ("sent", "status", "says"),
        [
            ({"json": {}}, 415, "send multipart/form-data"),
            ({"files": [("image", b"x")]}, 400, "the form has the unknown field 'image'; the nearest is 'images'"),
            ({"files": [("images", b"x")], "data": {"top": "3"}}, 400, "the unknown field 'top'; there are 'images'"),
            ({"content": b"--b--"}, 400, "send one or several files in the field `images`"),
            ({"files": [("images", b"x")] * 9}, 413, "the request has 9 images, more than the 8 allowed"),
            ({"files": [("images", b"x")] * 40}, 413, "the body has more than 32 parts"),
            ({"files": [("images", b"x" * 100_001)]}, 413, "bytes, more than the 100,000 allowed"),
            ({"content": b"--b\r\n\r\nx"}, 400, "it ends before its last boundary"),
            ({"content": b"nothing"}, 400, "the body is no multipart/form-data: "),
            ({"content": b""}, 400, "the body is no multipart/form-data: "),
        ],
    )
    def test_bodies_that_make_no_sense(
        self, client: httpx.Client, sent: dict[str, Any], status: int, says: str
    ) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=b"} if "content" in sent else {}
        response = client.post("/predict", headers=headers, **sent)
        assert response.status_code == status and says in response.json()["error"]

    def test_a_body_without_length_is_bounded(self, client: httpx.Client) -> None:
        def endless() -> Iterator[bytes]:
            for _ in range(1000):
                yield b"x" * 1000

        response = client.post("/predict", content=endless())
        assert response.status_code == 413 and "more than the 100,000 bytes allowed" in response.json()["error"]

    def test_compressed_bodies_are_refused(self, client: httpx.Client) -> None:
        response = client.post("/predict", content=b"x", headers={"Content-Encoding": "gzip"})
        assert response.status_code == 415 and "Content-Encoding 'gzip' is not read" in response.json()["error"]


ZEROS = np.zeros((1, 1, 8, 8), np.float32)


class TestMalformedTensors:
    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"\xff", "the body cannot be read as JSON"),
            (b"[" * 100_000, "the body cannot be read as JSON"),
            ([], "the body must be a JSON object with `inputs`"),
            ({}, "inputs must be a list of one tensor, named `image`"),
            ({"inputs": [1, 2]}, "inputs must be a list of one tensor"),
            ({"inputs": [1]}, "inputs[0].name must be `image`, got 1"),
            ({"id": 5, **tensor(ZEROS)}, "id must be a text, got 5"),
            ({**tensor(ZEROS), "parameters": []}, "parameters must be an object, got []"),
            ({**tensor(ZEROS), "parameters": {"deadline_ms": "x"}}, "parameters.deadline_ms must be a positive number"),
            ({**tensor(ZEROS), "outputs": [{"name": "x"}]}, "outputs[0].name must be one of logits, probability"),
            ({**tensor(ZEROS), "outputs": {}}, "outputs must be a list, got {}"),
            (
                {**tensor(ZEROS), "outputs": [{"name": "exit", "parameters": {"classification": 3}}]},
                "outputs[0].parameters.classification is not supported",
            ),
            (
                {**tensor(ZEROS), "outputs": [{"name": "exit", "parameters": {"binary_data": 1}}]},
                "outputs[0].parameters.binary_data must be true or false, got 1",
            ),
            (tensor(ZEROS, datatype="INT64"), "inputs[0].datatype must be FP32 (inputs of the network), UINT8"),
            (tensor(ZEROS, shape=[1, 8, 8]), "inputs[0].shape must be [N, 1, 8, 8] for the datatype FP32, got [1, 8"),
            (tensor(ZEROS, shape=[0, 1, 8, 8]), "inputs[0].shape must be [N, 1, 8, 8] for the datatype FP32, got [0"),
            (tensor(ZEROS, shape=[10**18, 1, 8, 8]), "inputs[0].shape holds 1000"),
            (tensor(ZEROS, shape=[10**400, 1, 8, 8]), "the body cannot be read as JSON"),
            (b'{"inputs": ["\\ud800"]}', "the body cannot be read as JSON"),
            (
                tensor(ZEROS, shape=[1] * 10_000),
                "inputs[0].shape must be [N, 1, 8, 8] for the datatype FP32, got [1, 1",
            ),
            (tensor(ZEROS, shape="x"), "inputs[0].shape must be [N, 1, 8, 8] for the datatype FP32, got 'x'"),
            (tensor(ZEROS, shape=[2, 1, 8, 8]), "inputs[0].data has 64 values in the shape [64], but inputs[0].shape"),
            (tensor(ZEROS, data=None), "inputs[0].data must be a list of numbers, got None"),
            (tensor(ZEROS, data=["x"] * 64), "inputs[0].data must hold numbers only, for the datatype FP32"),
            (tensor(ZEROS, data=[[1], 2]), "inputs[0].data must be a flat list or lists of equal lengths"),
            (tensor(ZEROS, data=[1e300] * 64), "inputs[0].data holds values that are not finite"),
            (
                tensor(ZEROS, datatype="UINT8", data=[True, *[3] * 63]),
                "inputs[0].data must hold numbers only, for the datatype UINT8",
            ),
            (
                tensor(ZEROS, data=[[[[0.5] * 8] * 7 + [[0.5] * 7 + [False]]]]),
                "inputs[0].data must hold numbers only, for the datatype FP32",
            ),
            (tensor(ZEROS, datatype="UINT8", data=[256] * 64), "inputs[0].data must be whole numbers from 0 to 255"),
            (tensor(ZEROS, datatype="BYTES", shape=[1], data=[5]), "inputs[0].data must be 1 images as base64 texts"),
            (tensor(ZEROS, datatype="BYTES", shape=[1], data=["é"]), "inputs[0].data must be base64 texts"),
            (
                tensor(ZEROS, parameters={"binary_data_size": 3}),
                "inputs[0].parameters.binary_data_size must be the 0 bytes that follow the JSON, got 3",
            ),
        ],
    )
    def test_the_field_is_named(self, client: httpx.Client, body: Any, says: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = client.post("/v2/models/digits/infer", content=content)
        assert response.status_code in (400, 413) and response.json()["error"].startswith(says), response.text
        assert len(response.json()["error"]) < 500

    @pytest.mark.parametrize("count", [1, 3])  # alone in the thread of HTTP, and in the engine's
    def test_inputs_that_overflow_in_the_network(self, client: httpx.Client, count: int) -> None:
        """They are refused, and the thread that computes survives."""
        huge = tensor(np.concatenate([np.zeros((count - 1, 1, 8, 8)), np.full((1, 1, 8, 8), 3e38)]).astype(np.float32))
        response = client.post("/v2/models/digits/infer", json=huge, timeout=20)
        assert response.status_code == 400
        assert response.json()["error"].startswith(f"the logits of image {count} are not finite: send inputs that are")
        for samples in (1, 3):
            body = tensor(np.zeros((samples, 1, 8, 8), np.float32))
            assert client.post("/v2/models/digits/infer", json=body, timeout=20).status_code == 200
        assert client.get("/v2/health/live").status_code == 200

    def test_data_and_binary_data(self, client: httpx.Client) -> None:
        text = json.dumps(tensor(ZEROS, parameters={"binary_data_size": 256})).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        response = client.post("/v2/models/digits/infer", content=text + bytes(256), headers=headers)
        assert response.status_code == 400
        assert response.json()["error"] == "inputs[0] has both data and parameters.binary_data_size: send one of them"

    def test_too_many_images(self, client: httpx.Client) -> None:
        response = client.post("/v2/models/digits/infer", json=tensor(np.zeros((9, 1, 8, 8), np.uint8)))
        assert response.status_code == 413 and "inputs[0].shape holds 9 images" in response.json()["error"]

    def test_nan_in_json(self, client: httpx.Client) -> None:
        text = json.dumps(tensor(ZEROS)).replace("0.0", "NaN", 1)
        response = client.post("/v2/models/digits/infer", content=text)
        assert response.status_code == 400
        assert response.json()["error"].startswith("the body cannot be read as JSON, which has no NaN or Infinity: ")

    def test_labels_that_are_not_unicode_are_escaped_in_the_answer(self) -> None:
        for binary in (False, True):
            request = protocol.InferRequest(None, [], None, {"label": binary})
            body, _ = protocol.render("m", "1", request, {"label": ["caf\udce9"]})
            assert (rb"caf\\xe9" if not binary else rb"caf\xe9") in body

    @pytest.mark.parametrize(
        ("length", "data", "kind", "says"),
        [
            ("x", b"", "FP32", "Inference-Header-Content-Length must be a number up to the"),
            ("²", b"", "FP32", "Inference-Header-Content-Length must be a number up to the"),
            ("9" * 5000, b"", "FP32", "Inference-Header-Content-Length must be a number up to the"),
            ("99999", b"", "FP32", "Inference-Header-Content-Length must be a number up to the"),
            (None, b"1234", "FP32", "inputs[0] has 4 bytes of binary data, its shape [1, 1, 8, 8] needs 256"),
            (None, struct.pack("<I", 50) + b"x", "BYTES", "inputs[0] has no 1 images in its binary data"),
            (None, b"\xff", "BYTES", "inputs[0] has no 1 images in its binary data"),
            (None, struct.pack("<I", 1) + b"xy", "BYTES", "inputs[0] has no 1 images in its binary data"),
        ],
    )
    def test_binary_data(self, client: httpx.Client, length: str | None, data: bytes, kind: str, says: str) -> None:
        shape = [1] if kind == "BYTES" else [1, 1, 8, 8]
        arguments = {"name": "image", "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(data)}}
        text = json.dumps({"inputs": [arguments]}).encode()
        headers = {"Inference-Header-Content-Length": (length or str(len(text))).encode("latin-1")}
        response = client.post("/v2/models/digits/infer", content=text + data, headers=headers)
        assert response.status_code == 400 and response.json()["error"].startswith(says), response.text

    def test_images_as_base64(self, client: httpx.Client, images: list[bytes]) -> None:
        body = tensor(ZEROS, datatype="BYTES", shape=[1, 1], data=[base64.b64encode(images[0]).decode()])
        answer = client.post("/v2/models/digits/infer", json=body).json()
        named = {output["name"]: output["data"] for output in answer["outputs"]}
        row = client.post("/predict", files=files(images[0])).json()["predictions"][0]
        assert (named["label"], named["exit"], named["error"]) == ([row["label"]], [row["exit"]], [""])

    def test_nothing_is_unpickled(self, client: httpx.Client, tmp_path: Path) -> None:
        import pickle

        class Harm:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "harm",))

        body = tensor(ZEROS, datatype="BYTES", shape=[1], data=[base64.b64encode(pickle.dumps(Harm())).decode()])
        answer = client.post("/v2/models/digits/infer", json=body).json()
        assert "image" in answer["outputs"][-1]["data"][0] and not (tmp_path / "harm").exists()


def held(bundle: Bundle, ready: threading.Event) -> Bundle:
    """A bundle whose first segment waits for an event."""
    inner = bundle.segments[0]

    def segment(state: Any, carry: Any) -> Any:
        assert ready.wait(20)
        return inner(state, carry)

    return replace(bundle, segments=(segment, *bundle.segments[1:]))


def test_a_server_that_does_not_answer_now_is_alive_and_not_ready(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statuses() -> list[int]:
        return [client.get(f"/v2/{path}").status_code for path in ("health/ready", "models/digits/ready")]

    assert statuses() == [200, 200]
    monkeypatch.setattr(AsyncPredictor, "ready", property(lambda _: False))
    assert statuses() == [503, 503] and client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/models/digits/ready").json() == {"name": "digits", "ready": False}
    assert client.get("/v2/models/none/ready").status_code == 404


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Lets a test choose how bundles are opened: `opened["with"] = function`."""
    chosen: dict[str, Any] = {"with": lambda bundle: bundle}
    monkeypatch.setattr(
        served_versions, "open_bundle", lambda folder, runtime: chosen["with"](open_bundle(folder, runtime))
    )
    return chosen


def waiting(server: Server) -> int:
    predictor: Any = server.models.get().predictor
    assert isinstance(predictor, AsyncPredictor)
    return predictor.engine.scheduler.unanswered


def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to that")


class TestLimits:
    def test_a_full_queue(self, folder: Path, images: list[bytes], opened: dict[str, Any]) -> None:
        """429 with Retry-After, before the body is read: the client has not even sent it."""
        ready = threading.Event()
        opened["with"] = lambda bundle: held(bundle, ready)
        with (
            Server(folder, port=0, queue=2, log="none") as server,
            httpx.Client(base_url=server.url, trust_env=False) as client,
            ThreadPoolExecutor(2) as pool,
        ):
            first = pool.submit(httpx.post, f"{server.url}/predict", files=files(*images[:2]), trust_env=False)
            until(lambda: waiting(server) == 2)
            with socket.create_connection(("127.0.0.1", server.options.port)) as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
                head = connection.recv(4096).decode()
            assert head.startswith("HTTP/1.1 429") and re.search(r"(?i)retry-after: [1-9]\d*\r\n", head)
            sent = tensor(ZEROS)
            refused = client.post("/v2/models/digits/infer", json=sent)
            assert refused.status_code == 429 and "the queue is full: 2 of at most 2" in refused.json()["error"]
            ready.set()
            assert [row["error"] for row in first.result().json()["predictions"]] == [None, None]
            three = client.post("/predict", files=files(*images[:3]))
            assert three.status_code == 413 and client.post("/predict", files=files(images[0])).status_code == 200
            assert 'offramp_refused_total{reason="queue_full"} 2.0' in client.get("/metrics").text

    def test_slow_clients(self, folder: Path, images: list[bytes]) -> None:
        """Neither a body nor headers that never end hold anything for long; others are answered meanwhile."""
        with Server(folder, port=0, body_timeout=0.3, header_timeout=0.4, log="none") as server:
            address = ("127.0.0.1", server.options.port)
            with socket.create_connection(address) as body, socket.create_connection(address) as head:
                body.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nslow")
                head.sendall(b"GET / HTTP/1.1\r\nHo")
                quick = httpx.post(f"{server.url}/predict", files=files(images[0]), trust_env=False)
                assert quick.status_code == 200
                body.settimeout(20)
                head.settimeout(20)
                answer = body.recv(4096)
                assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.3 seconds" in (
                    answer + body.recv(4096)
                )
                assert head.recv(4096) == b""

    def test_connections_are_bounded(self, folder: Path, images: list[bytes]) -> None:
        with Server(folder, port=0, connections=2, log="none") as server:
            address = ("127.0.0.1", server.options.port)
            opened = [socket.create_connection(address, timeout=20) for _ in range(2)]
            until(lambda: len(server._server.server_state.connections) == 2)
            refused = httpx.post(f"{server.url}/predict", files=files(images[0]), trust_env=False)
            assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
            assert "too many connections are open" in refused.json()["error"]
            more = [socket.create_connection(address, timeout=20) for _ in range(4)]  # twice as many: closed at once
            ends = [_all(connection) for connection in more]
            assert b"" in ends
            for connection in (*opened, *more):
                connection.close()
            until(lambda: not server._server.server_state.connections)
            with httpx.Client(base_url=server.url, trust_env=False) as client:
                assert client.post("/predict", files=files(images[0])).status_code == 200
                assert 'offramp_refused_total{reason="connections"} 5.0' in client.get("/metrics").text

    def test_headers_without_end(self, server: Server, client: httpx.Client, images: list[bytes]) -> None:
        with socket.create_connection(("127.0.0.1", server.options.port)) as connection:
            connection.settimeout(20)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
            with pytest.raises(ConnectionError):
                for _ in range(5000):
                    connection.sendall(b"x" * 10_000)
        assert client.post("/predict", files=files(images[0])).status_code == 200

    def test_bodies_share_a_budget(self, server: Server, client: httpx.Client, images: list[bytes]) -> None:
        budget = server.app.state.context.budget
        assert budget.limit == 8 * 100_000 and budget.taken == 0
        budget.taken = budget.limit
        try:
            refused = client.post("/predict", files=files(images[0]))
        finally:
            budget.taken = 0
        assert refused.status_code == 429 and "too many requests are being read" in refused.json()["error"]

    def test_announced_bodies_keep_nobody_out(self, server: Server, client: httpx.Client, images: list[bytes]) -> None:
        """Only bytes that have arrived are counted, whether a request says how many will come or not."""
        address, opened = ("127.0.0.1", server.options.port), list[socket.socket]()
        for kind in ["Content-Length: 100000", "Transfer-Encoding: chunked"] * 8:
            opened.append(socket.create_connection(address))
            opened[-1].sendall(f"POST /predict HTTP/1.1\r\nHost: a\r\n{kind}\r\n\r\n".encode())
        until(lambda: server.models.get()._uses == len(opened))
        assert client.post("/predict", files=files(images[0])).status_code == 200
        opened[0].sendall(b"x" * 50_000)
        until(lambda: server.app.state.context.budget.taken == 50_000)
        for connection in opened:
            connection.close()
        until(lambda: server.app.state.context.budget.taken == 0)

    def test_nothing_is_decoded_that_the_queue_has_no_place_for(
        self, folder: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Images that are being decoded count: they will need places as well."""
        decode, ready, decoded = AsyncPredictor.decode, threading.Event(), list[bytes]()

        async def slow(self: AsyncPredictor, image: bytes) -> Any:
            decoded.append(image)
            while not ready.is_set():
                await asyncio.sleep(0.005)
            return await decode(self, image)

        monkeypatch.setattr(AsyncPredictor, "decode", slow)
        body = tensor(ZEROS, datatype="BYTES", shape=[2], data=[base64.b64encode(images[3]).decode()] * 2)
        with (
            Server(folder, port=0, queue=4, log="none") as server,
            httpx.Client(base_url=server.url, trust_env=False) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            first = pool.submit(httpx.post, f"{server.url}/predict", files=files(*images[:3]), trust_env=False)
            until(lambda: len(decoded) == 3)
            refused = (
                client.post("/predict", files=files(*images[:2])),
                client.post("/v2/models/digits/infer", json=body),
            )
            assert [answer.status_code for answer in refused] == [429, 429] and len(decoded) == 3
            assert refused[0].json()["error"] == "the queue is full: 3 of at most 4 samples wait, 2 more do not fit"
            assert refused[0].headers["Retry-After"] == "1" and "Connection" not in refused[0].headers
            ready.set()
            assert [row["error"] for row in first.result().json()["predictions"]] == [None] * 3
            assert client.post("/predict", files=files(*images[:4])).status_code == 200

    def test_an_early_error_closes_the_connection_if_much_would_follow(self, client: httpx.Client) -> None:
        for path in ("/predict?rejct=1", "/v2/models/none/infer", "/nowhere"):
            small, large = (client.post(path, content=bytes(size)) for size in (100, 90_000))
            assert small.status_code == large.status_code and small.json() == large.json()
            assert "Connection" not in small.headers and large.headers["Connection"] == "close"

    def test_what_is_not_http(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        with Server(folder, port=0, log="errors") as server:
            for sent in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", server.options.port), timeout=20) as connection:
                    connection.sendall(sent)
                    head, _, body = _all(connection).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body) == {
                    "error": "this is no valid HTTP request"
                }
            upgrade = {"Connection": "upgrade", "Upgrade": "websocket"}
            assert httpx.get(f"{server.url}/v2", headers=upgrade, trust_env=False).status_code == 200
            metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
        assert 'offramp_refused_total{reason="malformed"} 2.0' in metrics
        logged = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        assert [(line["event"], line["status"], line["reason"]) for line in logged] == [
            ("request", 400, "malformed")
        ] * 2

    def test_clients_that_go_away(self, server: Server, client: httpx.Client, images: list[bytes]) -> None:
        address = ("127.0.0.1", server.options.port)
        for content in (b"", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 90\r\n\r\nx", b"\x00\x01\r\n\r\n"):
            with socket.create_connection(address) as connection:
                connection.sendall(content)
        assert client.post("/predict", files=files(images[0])).status_code == 200
        until(lambda: server.app.state.context.budget.taken == 0)
        served = server.app.state.context.requests.served
        until(lambda: served["/predict", "499"])  # nobody's mistake: no 500, no line that says so
        assert not any(status == "500" for _, status in served)

    def test_a_failing_segment(
        self, folder: Path, images: list[bytes], opened: dict[str, Any], pixels: np.ndarray
    ) -> None:
        calls: list[int] = []

        def broken(bundle: Bundle) -> Bundle:
            def segment(state: Any, carry: Any) -> Any:
                calls.append(1)
                if len(calls) == 1:
                    raise ValueError("segment-1.onnx failed in ONNX Runtime: out of memory")
                return bundle.segments[0](state, carry)

            return replace(bundle, segments=(segment, *bundle.segments[1:]))

        opened["with"] = broken
        with Server(folder, port=0, log="none") as server:
            failed, right = (
                httpx.post(f"{server.url}/predict", files=files(images[0]), trust_env=False) for _ in range(2)
            )
        assert failed.status_code == 500 and right.status_code == 200
        says = "the network failed: segment-1.onnx failed in ONNX Runtime: out of memory"
        assert failed.json() == {"error": says}


class TestReload:
    def test_no_request_is_lost(self, folder: Path, tmp_path: Path, images: list[bytes]) -> None:
        """Clients keep asking while another bundle takes the place of the first, again and again."""
        copy = Path(copytree(folder, tmp_path / "digits"))
        with Server(copy, port=0, log="none") as server:

            def ask(number: int) -> list[tuple[int, str, str]]:
                with httpx.Client(base_url=server.url, trust_env=False) as client:
                    answers = [client.post("/predict", files=files(images[number])) for _ in range(25)]
                return [(a.status_code, a.json()["predictions"][0]["label"], a.json()["version"]) for a in answers]

            with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url, trust_env=False) as client:
                asking = [pool.submit(ask, number) for number in range(4)]
                for number in range(2, 5):
                    policy = open_bundle(copy).policy
                    (copy / f"policy-{number}.json").write_text(policy.to_json())
                    assert client.post("/v2/repository/models/digits/load").json()["versions"][-1] == f"1.{number}"
                results = [future.result() for future in asking]
            wanted = {
                number: next(iter(offramp.load_bundle(folder).predict([_file(tmp_path, images[number])]))).label
                for number in range(4)
            }
            for number, rows in enumerate(results):
                assert {(status, label) for status, label, _ in rows} == {(200, wanted[number])}
            until(lambda: not server.models._retiring)

    def test_the_old_network_leaves_memory_at_once(self, folder: Path) -> None:
        with Server(folder, port=0, log="none") as server:
            old = weakref.ref(server.models.get().bundle)
            gc.disable()  # no cycle may keep it until someone looks for cycles
            try:
                answer = httpx.post(f"{server.url}/v2/repository/models/digits/load", trust_env=False)
                assert answer.status_code == 200
                until(lambda: old() is None)
            finally:
                gc.enable()

    def test_a_request_that_began_before_is_answered(self, folder: Path, images: list[bytes]) -> None:
        """Half of its body has come when the model is loaded again: the old one waits for the rest."""
        sent = httpx.Request("POST", "http://a/predict", files=files(images[0]))
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
        with (
            Server(folder, port=0, log="none") as server,
            socket.create_connection(("127.0.0.1", server.options.port)) as connection,
        ):
            content = sent.read()
            connection.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n".encode() + content[:50])
            old = server.models.get()
            until(lambda: old._uses == 1)
            assert httpx.post(f"{server.url}/v2/repository/models/digits/load", trust_env=False).status_code == 200
            assert server.models.get() is not old
            time.sleep(0.1)  # for the old one to be closed, if nothing kept it open
            connection.sendall(content[50:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            until(lambda: not old.predictor.alive)  # and then it is closed

    def test_a_damaged_bundle_changes_nothing(self, folder: Path, tmp_path: Path, images: list[bytes]) -> None:
        copy = Path(copytree(folder, tmp_path / "digits"))
        with Server(copy, port=0, log="none") as server:
            (copy / "segment-2.onnx").write_bytes(b"damaged")
            refused = httpx.post(f"{server.url}/v2/repository/models/digits/load", trust_env=False)
            assert refused.status_code == 400 and "segment-2.onnx is truncated or changed" in refused.json()["error"]
            still = httpx.post(f"{server.url}/predict", files=files(images[0]), trust_env=False)
            assert still.status_code == 200

    def test_a_folder_that_is_gone(self, folder: Path, tmp_path: Path, images: list[bytes]) -> None:
        copy = Path(copytree(folder, tmp_path / "digits"))
        with (
            Server(copy, port=0, log="none") as server,
            httpx.Client(base_url=server.url, trust_env=False) as client,
        ):
            rmtree(copy)
            refused = client.post("/v2/repository/models/digits/load")
            assert refused.json()["error"] == f"digits was not loaded: there is no folder {copy}"
            assert client.post("/predict", files=files(images[0])).status_code == 200

    def test_two_folders_of_one_version(self, folder: Path, tmp_path: Path) -> None:
        for name in ("1", "01"):
            copytree(folder, tmp_path / "digits" / name)
        says = r"/0?1 are both version 1: rename one"
        with pytest.raises(ValueError, match=says), Server(tmp_path / "digits", port=0):
            pass

    def test_policies_that_do_not_fit(self, folder: Path, tmp_path: Path) -> None:
        copy = Path(copytree(folder, tmp_path / "digits"))
        policy = ExitPolicy(thresholds=(0.5,) * 3, enabled=(True, False, True))
        (copy / "policy-2.json").write_text(policy.to_json())
        with pytest.raises(ValueError, match=r"policy-2.json enables other exits than"), Server(copy, port=0):
            pass


def _file(folder: Path, image: bytes) -> Path:
    (folder / "one.png").write_bytes(image)
    return folder / "one.png"


class TestAccess:
    def test_a_token(self, folder: Path, images: list[bytes]) -> None:
        with (
            Server(folder, port=0, token="secret", log="none") as server,
            httpx.Client(base_url=server.url, trust_env=False) as client,
        ):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
                refused = client.post("/predict", files=files(images[0]), headers=headers)
                assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
                assert client.get("/metrics", headers=headers).status_code == 401
            for scheme in ("Bearer", "bearer"):  # its case does not matter (RFC 9110, section 11.1)
                right = {"Authorization": f"{scheme} secret"}
                assert client.post("/predict", files=files(images[0]), headers=right).status_code == 200
            assert client.get("/v2/health/ready").status_code == 200 and client.get("/").status_code == 200

    def test_pages_of_other_origins(self, server: Server, client: httpx.Client, images: list[bytes]) -> None:
        """No CORS headers, and requests that a browser would send without asking are refused."""
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            refused = client.post("/v2/repository/models/digits/load", headers=headers)
            assert refused.status_code == 403 and "other origins" in refused.json()["error"]
        answer = client.post("/predict", files=files(images[0]), headers={"Origin": server.url})
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers

    def test_an_origin_that_is_allowed(self, folder: Path, images: list[bytes]) -> None:
        with Server(folder, port=0, cors=("https://friend.example",), log="none") as server:
            headers = {"Origin": "https://friend.example"}
            answer = httpx.post(f"{server.url}/predict", files=files(images[0]), headers=headers, trust_env=False)
            assert answer.headers["access-control-allow-origin"] == "https://friend.example"
            headers = {"Origin": "https://evil.example"}
            assert httpx.post(f"{server.url}/predict", headers=headers, trust_env=False).status_code == 403

    def test_it_listens_on_this_machine_only(self, server: Server) -> None:
        assert server.options.host == "127.0.0.1" and server.url.startswith("http://127.0.0.1:")

    def test_addresses_are_not_fetched(self, client: httpx.Client) -> None:
        sent = {"images": (None, "http://127.0.0.1:1/a.png")}
        row = client.post("/predict", files=sent).json()["predictions"][0]
        assert row["label"] is None and "image" in row["error"]


class TestMetrics:
    def test_what_prometheus_reads(self, folder: Path, images: list[bytes], bundle: Bundle, pixels: np.ndarray) -> None:
        with (
            Server(folder, port=0, log="none") as server,
            httpx.Client(base_url=server.url, trust_env=False) as client,
        ):
            client.post("/predict", files=files(*images[:6]))
            client.get("/nowhere/1")
            response = client.get("/metrics")
        exits = bundle.answer(bundle.manifest.preprocessing.normalise(pixels[:6])).exit.tolist()
        text, label = response.text, 'model="digits",version="1"'
        assert response.headers["content-type"].startswith("text/plain")
        for exit in range(3):
            here = f'{{exit="{exit + 1}",{label}}}'
            assert f"offramp_images_total{here} {float(exits.count(exit))}" in text
            assert f"offramp_exit_share{here} {exits.count(exit) / 6}" in text
            assert f"offramp_latency_seconds_count{here} {float(exits.count(exit))}" in text
        assert 'offramp_batch_size_count{model="digits",segment="1",version="1"}' in text
        assert 'offramp_queue_length{model="digits",segment="2",version="1"} 0.0' in text
        assert 'offramp_requests_total{path="/predict",status="200"} 1.0' in text
        assert 'offramp_requests_total{path="other",status="404"} 1.0' in text

    def test_logs(self, folder: Path, images: list[bytes], capfd: pytest.CaptureFixture[str]) -> None:
        with Server(folder, port=0) as server:
            httpx.post(f"{server.url}/predict", files=files(images[0]), trust_env=False)
            httpx.get(f"{server.url}/v2/models/a%0ab", trust_env=False)
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        right, wrong, stopped = lines
        assert (right["event"], right["level"], right["status"], right["images"]) == ("request", "info", 200, 1)
        assert (right["model"], right["version"], right["path"]) == ("digits", "1", "/predict") and right["ms"] > 0
        assert (wrong["level"], wrong["status"], wrong["reason"]) == ("error", 404, "unknown")
        assert wrong["path"] == "/v2/models/a\nb" and stopped["event"] == "stopped"

    def test_head_is_get_without_a_body(self, server: Server, client: httpx.Client) -> None:
        for path in ("/", "/v2/health/ready", "/metrics"):
            answer = client.head(path)
            assert answer.status_code == 200 and answer.content == b""
        assert client.head("/predict").status_code == 405

    def test_addresses_and_methods_that_are_none(self, client: httpx.Client) -> None:
        missing, method = client.get("/nowhere"), client.get("/predict")
        assert missing.status_code == 404 and method.status_code == 405 and method.headers["Allow"] == "POST"
        assert missing.json()["error"] == "there is no address '/nowhere': /openapi.json lists them all"
        assert method.json()["error"] == "'/predict' does not accept GET, but POST"

    def test_openapi(self, client: httpx.Client) -> None:
        document = client.get("/openapi.json").json()
        body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
        assert body["schema"]["properties"]["images"]["type"] == "array"
        assert "429" in document["paths"]["/v2/models/{model}/infer"]["post"]["responses"]
        assert client.get("/docs").status_code == client.get("/redoc").status_code == 404  # they load foreign scripts


class TestStart:
    @pytest.mark.parametrize(
        ("words", "options", "says"),
        [
            ((), {}, "name at least one bundle"),
            (("{folder}", "{folder}"), {}, "two models are named digits: write NAME=FOLDER"),
            (("nowhere",), {}, "there is no folder nowhere"),
            (("a/b={folder}",), {}, "'a/b' cannot be the name of a model in an address"),
            (("{folder}",), {"host": ""}, "host must be an address of this machine; for all of them, 0.0.0.0"),
            (("{folder}",), {"port": 70000}, "port must be from 0 to 65535, got 70000"),
            (("{folder}",), {"queue": 0}, "queue must be at least 1, got 0"),
            (("{folder}",), {"body_timeout": 0}, "body_timeout must be a positive number, got 0"),
            (("{folder}",), {"false_alarm": 1}, "false_alarm must be a probability"),
            (("{folder}",), {"token": " "}, "token must be printable ASCII text"),
            (("{folder}",), {"cors": ("evil.example",)}, "cors must be origins such as https://example.org"),
            (("{folder}",), {"cors": ("https://a.example/",)}, "got 'https://a.example/'"),
            (("{folder}",), {"cors": ("*",)}, "got '*'"),
            (("{folder}",), {"log": "some"}, "log must be all, errors or none, got some"),
            (("{folder}",), {"colour": 1}, "there is no option colour"),
        ],
    )
    def test_values_that_make_no_sense(
        self, folder: Path, words: tuple[str, ...], options: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(says)):
            Server(*(word.format(folder=folder) for word in words), **{"port": 0, **options})

    def test_a_folder_that_is_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"is not a bundle: it has no manifest.json"), Server(tmp_path, port=0):
            pass

    def test_a_server_runs_once(self, folder: Path) -> None:
        with Server(folder, port=0, log="none") as server, pytest.raises(RuntimeError, match="create another Server"):
            server.run()
        with pytest.raises(RuntimeError, match="this server has run before"), server:
            pass

    def test_an_address_in_use(self, server: Server, folder: Path) -> None:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {server.options.port}: "):
            Server(folder, port=server.options.port)

    def test_another_manifest_is_another_bundle(self, folder: Path, tmp_path: Path) -> None:
        """A bundle that was written before scores of cal were stored is served; drift is not tested."""
        copy = Path(copytree(folder, tmp_path / "old"))
        (copy / "manifest.json").write_text(render(replace(read_manifest(folder), provenance={})))
        with Server(copy, port=0, log="none") as server:
            report = httpx.get(f"{server.url}/drift", trust_env=False).json()
        assert report["tested"] is False and "export it" in report["reason"]


class TestShortcut:
    def test_frequent_requests_do_not_enter_the_framework(
        self, client: httpx.Client, images: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*args: Any) -> None:
            raise RuntimeError("this is the framework")

        monkeypatch.setattr(FastAPI, "__call__", broken)
        assert client.post("/predict", files=files(images[0])).status_code == 200
        assert client.post("/v2/models/digits/infer", content=b"no JSON").status_code == 400
        assert client.get("/v2").status_code == 500

    @pytest.mark.parametrize("path", ["/predict", "/predict?top=2"])
    def test_a_mistake_of_ours_is_one_sentence_and_in_the_log(
        self,
        folder: Path,
        images: list[bytes],
        path: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        async def fails(self: Any, *args: Any, **more: Any) -> None:
            raise KeyError("lost")

        with Server(folder, port=0, log="errors") as server:
            with monkeypatch.context() as patch:
                patch.setattr(AsyncPredictor, "infer", fails)
                answer = httpx.post(f"{server.url}{path}", files=files(images[0]), trust_env=False)
            assert answer.status_code == 500
            assert answer.json() == {"error": "the server made a mistake, which its log names"}
            assert httpx.post(f"{server.url}{path}", files=files(images[0]), trust_env=False).status_code == 200
        logged = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
        events = {(line["event"], line.get("error"), line.get("status")) for line in logged}
        assert {("mistake", "KeyError: 'lost'", None), ("request", None, 500)} <= events
