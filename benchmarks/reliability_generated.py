"""Requests that schemathesis generates from a server's OpenAPI document."""

import json
from typing import Any

from reliability_server import Server


def generate(server: Server, examples: int) -> list[bytes]:
    """Requests that schemathesis generates from the server's OpenAPI document; none unloads the model."""
    import requests
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    document = json.loads(server.get("/openapi.json"))
    for path in document["paths"].values():
        for operation in path.values():
            for each in operation.get("parameters", []):
                if each["name"] in ("model", "version"):  # names that exist, so that more than 404 is seen
                    each["schema"] = {"enum": ["digits" if each["name"] == "model" else "1", "none"]}
    result: list[bytes] = []

    def collect(operation: Any) -> None:
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy())
        def make(case: Any) -> None:
            words = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{server.port}")
            words = {name: words[name] for name in words if name in requests.Request().__dict__}
            sent = requests.Request(**words).prepare()
            body = sent.body.encode() if isinstance(sent.body, str) else sent.body or b""
            if isinstance(body, bytes):
                lines = [f"{sent.method} {sent.path_url} HTTP/1.1", "Host: localhost"]
                headers = {**sent.headers, "Content-Length": str(len(body))}
                lines += [f"{name}: {_text(value)}" for name, value in headers.items()]
                result.append("\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body)

        make()

    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        if not operation.ok().path.endswith(("/unload", "/load", "/recalibrate")):
            collect(operation.ok())
    return result


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
