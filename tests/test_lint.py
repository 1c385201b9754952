"""What `make lint` must notice although shapes in annotations look like names to a linter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("code", "undefined"),
    [
        ("def length(x: int) -> int:\n    return undefined_call(x)\n", True),
        ("def length(x: 'Undefined') -> int:\n    return 1\n", True),
        (
            'from jaxtyping import Int\nfrom torch import Tensor\n\nx: Int[Tensor, "E B C"]\ny: Int[Tensor, "B"]\n',
            False,
        ),
    ],
)
def test_an_undefined_name_fails_the_lint(code: str, undefined: bool) -> None:
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise"]
    planted = [*words, "--stdin-filename", str(ROOT / "offramp" / "planted.py"), "-"]
    ran = subprocess.run(planted, cwd=ROOT, input=code, capture_output=True, text=True, timeout=60)
    assert ("F821" in ran.stdout) == undefined and not ran.stderr
