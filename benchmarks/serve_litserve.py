"""The plain network in LitServe, whose processes import this module; started by `serve_servers.py`."""

from pathlib import Path
from typing import Any

import litserve
from fastapi import Request
from serve_servers import answers, decode, texts

from offramp.bundle.read import open_bundle


class Plain(litserve.LitAPI):
    """Several images per request, several requests per batch."""

    folder: Path

    def setup(self, device: Any) -> None:
        self.bundle = open_bundle(self.folder)

    def decode_request(self, request: Request) -> Any:  # LitServe passes on its JSON
        return decode(self.bundle, texts(request))

    def batch(self, inputs: Any) -> Any:
        return inputs

    def predict(self, inputs: Any) -> Any:
        return answers(self.bundle, inputs)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return {"logits": output}
