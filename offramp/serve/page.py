"""The page at `/`: one file without scripts from elsewhere. Runs without torch."""

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files("offramp.serve").joinpath("page.html").read_text(encoding="utf-8")


def _digest(tag: str) -> str:
    """The source expression that allows the page's own script or style, and no other."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    assert match is not None
    digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
    return f"'sha256-{digest}'"


POLICY = (
    f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; img-src blob: data:; "
    "media-src blob: mediastream:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy."""
