"""Names and values from elsewhere: no control character is printed, no formula reaches a spreadsheet."""

import csv
import io
import math
from typing import Any

import pytest

from offramp.schema import check, fits
from offramp.text import csv_cell, escaped, one_line, printable, quantity, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"),
        ("\x1b[2Jcat\x07", r"\x1b[2Jcat\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("a\u202eb\u2028c", r"a\u202eb\u2028c"),
        ("café \u3000猫 \u0646\u200c\u0645", "café \u3000猫 \u0646\u200c\u0645"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("\ud800.png", r"\ud800.png"),
    ],
)
def test_control_characters_are_escaped_and_letters_stay(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(f"{text}\n", lines=True).endswith("\n")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1", "-x.png"])
def test_a_formula_is_quoted(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, 3, None, True, "a=b", "cat", ""])
def test_numbers_and_plain_texts_are_not(value: Any) -> None:
    assert csv_cell(value) == value


def test_a_cell_is_one_cell_whatever_is_in_it() -> None:
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell('a,"b"\nc'), csv_cell("\t=1")])
    assert next(csv.reader(io.StringIO(file.getvalue()))) == ['a,"b"\\nc', "\\t=1"]


def test_values_and_messages_are_cut() -> None:
    assert quoted("a" * 10**6) == f"'{'a' * 198}…" and len(quoted(list(range(10**4)))) == 200
    assert quoted("short") == "'short'"
    line = one_line("begin\n" + "x" * 10**5 + "\x1b end")
    assert line.startswith("begin x") and line.endswith(r"x\x1b end") and len(line) <= 1500


def test_html_has_neither_elements_nor_control_characters() -> None:
    assert escaped("<b>\x1b'") == r"&lt;b&gt;\x1b&#x27;"


SPEC: dict[str, Any] = {
    "epochs": int,
    "seconds": float,
    "best": ({"epoch": int}, None),
    "names?": [str],
    "terms?": {str: (float, None)},
}
GOOD = {"epochs": 2, "seconds": 1.5, "best": None, "more": object()}


@pytest.mark.parametrize(
    "changes", [{}, {"seconds": 2}, {"best": {"epoch": 3}}, {"names": []}, {"names": ["a"]}, {"terms": {"ce": None}}]
)
def test_a_value_that_fits(changes: dict[str, Any]) -> None:
    check({**GOOD, **changes}, SPEC, "file")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": True}, "file: epochs must be a whole number, got True"),
        ({"epochs": "2"}, "file: epochs must be a whole number, got '2'"),
        ({"seconds": math.nan}, "file: seconds must be a finite number, got nan"),
        ({"best": {}}, r"file: best\.epoch is missing"),
        ({"best": []}, r"file: best must be an object or null, got \[\]"),
        ({"names": ["a", 1]}, r"file: names\[1\] must be a text, got 1"),
        ({"names": "a"}, "file: names must be a list, got 'a'"),
        ({"terms": {"ce": []}}, r"file: terms.'ce' must be a finite number or null, got \[\]"),
    ],
)
def test_a_value_that_does_not_fit(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check({**GOOD, **changes}, SPEC, "file")
    assert not fits({**GOOD, **changes}, SPEC)


def test_a_file_of_another_kind_does_not_fit() -> None:
    with pytest.raises(ValueError, match="file: its content must be an object, got 3"):
        check(3, SPEC, "file")


def test_one_of_a_kind_is_singular() -> None:
    assert [quantity(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


def test_a_large_value_is_quoted_without_its_end() -> None:
    """Its representation would take long."""

    class Last:
        def __repr__(self) -> str:
            raise AssertionError("nobody reads this")

    for value in ([0] * 300 + [Last()], {"a": [0] * 300 + [Last()]}, [[[0] * 300 + [Last()]]]):
        assert len(quoted(value)) == 200 and quoted(value).endswith("…")
