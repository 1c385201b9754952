"""What derived files say of themselves."""

import json
import re

from offramp import digests


def test_a_signed_page_says_what_it_was_made_from_and_that_it_is_whole() -> None:
    text = digests.signed("<svg/>\n", {"r --> <script>": "ab", "cal": None})
    comment = re.fullmatch(r"<svg/>\n<!-- made from (\{.*\}) blake2b ([0-9a-f]{32}) -->\n", text)
    assert comment and json.loads(comment[1]) == {"r --> <script>": "ab", "cal": None}
    assert digests.of_bytes(text.partition(" blake2b ")[0].encode()) == comment[2]
    assert text.count("--") == 2, "names must not end the comment"
