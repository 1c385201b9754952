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
    with pytest.raises(RequestError, match="the body is no multipart/form-data: "):
        multipart(kind, body[: max(0, len(body) - len("--\r\n") - cut)], 8)


@pytest.mark.parametrize("body", [b"--bc\r\n\r\nx\r\n--b--", b"--b\r\nA b\r\n\r\nx\r\n--b--", b"--b\n\nx\n--b--", b"x"])
def test_what_is_no_form(body: bytes) -> None:
    with pytest.raises(RequestError, match="the body is no multipart/form-data: "):
        multipart(FORM, body, 1)


def test_more_parts_than_images_need() -> None:
    part = b"\r\n--b\r\nA: b\r\n\r\nx"
    assert len(multipart(FORM, part[2:] + 3 * part + b"\r\n--b--\r\n", 1)) == 4
    with pytest.raises(RequestError, match="the body has more than 4 parts"):
        multipart(FORM, part[2:] + 4 * part + b"\r\n--b--\r\n", 1)
