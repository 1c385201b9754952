"""Multipart bodies: what clients send is read as it was sent; what is none is refused."""

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.serve.bodies import multipart
from offramp.serve.errors import RequestError

FORM = "multipart/form-data; boundary=b"
CONTENT = st.binary(max_size=300) | st.sampled_from([b"", b"\r\n", b"\r\n--", b"--", b"\r\n\r\n", b"a: b\r\n\r\nc\r\n"])
NAMES = st.sampled_from(["a.jpg", "ü;'\".png", "C:x=1", ""])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(NAMES, CONTENT), min_size=1, max_size=5), st.booleans(), st.integers(1, 200))
def test_parts_are_what_was_sent(files: list[tuple[str, bytes]], labelled: bool, cut: int) -> None:
    data = {"labels": ["7", "é"]} if labelled else None
    request = httpx.Request("POST", "http://server", files=[("images", file) for file in files], data=data)
    body, kind = request.read(), request.headers["content-type"]
    parts = multipart(kind, body, 8)
    assert [part.data for part in parts if part.name == "images"] == [content for _, content in files]
    assert [part.text for part in parts if part.name == "labels"] == (["7", "é"] if labelled else [])
    assert [part.filename for part in parts if part.name == "images" and part.filename.endswith(".jpg")] == [
        name for name, _ in files if name.endswith(".jpg")
    ]
    with pytest.raises(RequestError, match=r"it ends before its last boundary|headers of a part do not end"):
        multipart(kind, body[: max(0, len(body) - len("--\r\n") - cut)], 8)


def test_what_standards_allow() -> None:
    body = b'preamble\r\n--b \t\r\nA: b\r\ncontent-DISPOSITION: form-data; name="x"; filename="C:\\d\\y.jpg"\r\n\r\nz'
    (part,) = multipart(FORM, body + b"\r\n--b--\r\nepilogue\r\n--b", 1)
    assert part == ("x", "y.jpg", b"z")
    assert multipart(FORM, b"--b--", 1) == [] and multipart(FORM, b"--b\r\n\r\n\r\n--b--", 1) == [("", "", b"")]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"--bc\r\n\r\nx\r\n--b--", "a boundary is followed by no line end"),
        (b"--b\r\nA: b\r\nx\r\n--b--", "headers of a part do not end within 8,192 bytes"),
        (b"--b" + b"\r\nA: b" * 2000 + b"\r\n\r\nx\r\n--b--", "headers of a part do not end within 8,192 bytes"),
        (b"--b\r\nA b\r\n\r\nx\r\n--b--", "a header of a part has no colon"),
        (b"--b\n\nx\n--b--", "headers of a part do not end"),
        (b"\r\n--b\r\n\r\nx" * 5 + b"\r\n--b--", "the body has more than 4 parts"),
    ],
)
def test_what_is_no_form(body: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        multipart(FORM, body, 1)
    assert len(multipart(FORM, b"\r\n--b\r\n\r\nx" * 4 + b"\r\n--b--", 1)) == 4
