"""Run the program as a user does: its words in, its exit status and what it printed out."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from offramp.cli import main


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def offramp(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*words: object) -> Ran:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return Ran(left.value.code or 0, printed.out, printed.err)

    return run
