"""CSV that no spreadsheet runs and no terminal obeys, and LaTeX that compiles as it reads."""

import csv
import io

import pytest

from offramp.study.tables import csv_text, latex, latex_text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_quoted_and_numbers_are_not(text: str) -> None:
    (_, (cell, number)) = csv.reader(io.StringIO(csv_text(["a", "b"], [[text, -0.5]])))
    assert cell.startswith(("'", "\\")) and float(number) == -0.5


def test_control_characters_are_written_out() -> None:
    text = csv_text(["a"], [["red \x1b[31m\u202e \n end"], [None]])
    assert text == 'a\nred \\x1b[31m\\u202e \\n end\n""\n'


def test_latex_is_escaped() -> None:
    assert latex("a_b & 50 % ± 1 – {x}\\") == r"a\_b \& 50 \% $\pm$ 1 -- \{x\}\textbackslash{}"
    text = latex_text("50 %", ["method", "a"], [["muse", "1.00 ± 0.10"]])
    assert r"\caption{50 \%}" in text and r"muse & 1.00 $\pm$ 0.10 \\" in text and r"{lr}" in text
